"""A model whose weights are drawn where and as they are kept: no float32 copy of it ever exists."""

from __future__ import annotations

import torch

from moe_core.config import ModelConfig
from moe_core.errors import UsageError
from moe_core.model.outline import outline
from moe_core.model.transformer import MoETransformer


def random_transformer(
    config: ModelConfig, *, device: torch.device, dtype: torch.dtype | None = None, seed: int = 0
) -> MoETransformer:
    """The model of `config` in eval mode, drawn as one that is to be trained; `dtype` None = float32.

    Raises UsageError for a router that keeps numbers of its own beside weights: they come from training.
    """
    model = outline(config)
    kept = [name for name, _ in model.named_buffers()]
    if kept:
        raise UsageError(f"a router that keeps {kept[0].rpartition('.')[2]} has to be trained; expected plain weights")
    weights = {
        name: torch.ones(weight.shape, dtype=dtype or torch.float32, device=device)
        for name, weight in model.named_parameters()
    }
    model.load_state_dict(weights, assign=True)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        model.draw_weights()
    return model.eval().requires_grad_(False)
