"""What one training step tells: where the model is, and as the host reads it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moe_core.runs.folder import RunStatus
from moe_core.training.gradient import StepLosses


class StepFigures(NamedTuple):
    """What the host has read of one step: its losses, see StepLosses, the global norm of its gradient, before
    clipping, and what its loss was multiplied by (1 but in float16)."""

    total: float
    language_model: float
    load_balancing: float
    router_z: float
    dropped_fraction: float
    contrastive: float
    gradient_norm: float
    loss_scale: float

    @property
    def are_finite(self) -> bool:
        """False = the step was skipped."""
        return math.isfinite(self.total) and math.isfinite(self.gradient_norm)


@dataclass(frozen=True)
class StepReport:
    """What one training step tells. Tensors are where the model is; reading one waits for the step to end."""

    losses: StepLosses
    """Before the update."""
    gradient_norm: Tensor
    """Global, before clipping."""
    loss_scale: Tensor
    """See loss_scaling.py."""
    learning_rate: float
    """AdamW's, as the schedule set it."""
    status: RunStatus
    """Of the run, right after the step."""

    @property
    def skipped(self) -> Tensor:
        """bool scalar: loss or gradient were not finite, so the weights stayed as they were."""
        return is_not_finite(self.losses.total, self.gradient_norm)

    def figures(self) -> Tensor:
        """[8], a StepFigures that is not read yet."""
        return torch.stack([*self.losses, self.gradient_norm, self.loss_scale])

    def record(self, figures: StepFigures, *, contrastive: bool = False) -> dict[str, Any]:
        """The "train" line for metrics.jsonl, with the contrastive loss where there is one."""
        return {
            "kind": "train",
            "step": self.status.step,
            "loss": figures.language_model,
            "load_balancing_loss": figures.load_balancing,
            "router_z_loss": figures.router_z,
            "gradient_norm": figures.gradient_norm,
            "learning_rate": self.learning_rate,
            "tokens_per_second": self.status.tokens_per_second,
            "tokens": self.status.tokens,
            "elapsed_seconds": self.status.elapsed_seconds,
            "dropped_fraction": figures.dropped_fraction,
            **({"contrastive_loss": figures.contrastive} if contrastive else {}),
        }


def is_not_finite(loss: Tensor, gradient_norm: Tensor) -> Tensor:
    """bool scalar, where its arguments are. A gradient that is not finite has a norm that is not."""
    return ~(loss.isfinite() & gradient_norm.isfinite())
