"""Where a trainer asks for a model among other processes; nothing of torch.distributed.tensor is imported without."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_core.config import Config
from moe_core.model.transformer import MoETransformer
from moe_core.training.parallel.mesh import Mesh

if TYPE_CHECKING:
    from moe_core.training.parallel.wrap import SpreadModel


def spread_over(mesh: Mesh | None, model: MoETransformer, config: Config) -> SpreadModel | None:
    """The model laid out over the processes of a mesh; None without one."""
    if mesh is None:
        return None
    from moe_core.training.parallel.wrap import SpreadModel  # half a second of imports

    return SpreadModel(model, mesh, config.training.seed)
