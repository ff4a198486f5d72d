"""How several processes share one training."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from pydantic import Field, model_validator

from moe_core.config.section import Section


class ParallelConfig(Section):
    """Ranks along each dimension of the mesh; their product is the number of processes that torchrun starts.

    No part of a run: a run goes on with any other layout that is given when it is resumed.
    """

    data: int = Field(1, ge=1, le=100_000)
    """Ranks that each hold the whole model and take their rows of every batch."""
    shard: int = Field(1, ge=1, le=100_000)
    """Ranks that each keep a part of every weight, gradient and optimizer state (FSDP), and take their rows."""
    expert: int = Field(1, ge=1, le=4_096)
    """Ranks that each hold a part of the experts, and take their rows; must divide model.num_experts."""
    tensor: int = Field(1, ge=1, le=1_024)
    """Ranks that each hold a part of the attention heads, and see the same rows; must divide model.num_kv_heads."""

    offload: bool = False
    """With `shard`: weights, gradients and optimizer state rest in the host's memory while no block computes with them
    (FSDP's CPU offload), and the optimizer's step is taken there."""
    save_interval: int | None = Field(None, ge=1)
    """None = checkpoints with every evaluation alone. Else, between those, every process writes its part of one after
    this many steps, while the training goes on."""

    @model_validator(mode="before")
    @classmethod
    def _no_pipeline(cls, values: Any) -> Any:
        """What torch offers composes with neither auxiliary losses nor a head that is the embedding."""
        if isinstance(values, Mapping) and str(values.get("pipeline", 1)) != "1":
            raise ValueError(
                f"parallel.pipeline = {values['pipeline']}: layers are not divided over processes, as router outputs "
                "and auxiliary losses do not travel between stages; use --parallel.shard, which saves the same memory"
            )
        return values

    @property
    def processes(self) -> int:
        """Of all dimensions together."""
        return prod((self.data, self.shard, self.expert, self.tensor))

    @property
    def batch_ranks(self) -> int:
        """Ranks that see different rows of a batch."""
        return self.data * self.shard * self.expert

    def __str__(self) -> str:
        """The dimensions that are more than 1, as in "data 2 x expert 2"."""
        sizes = {name: getattr(self, name) for name in ("data", "shard", "expert", "tensor")}
        return " x ".join(f"{name} {size}" for name, size in sizes.items() if size > 1) or "one process"
