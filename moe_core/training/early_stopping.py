"""The best evaluation of a run so far: when to stop for want of a better one, and which checkpoint to keep."""

from __future__ import annotations

import math
from dataclasses import dataclass

from moe_core.config import TrainingConfig


@dataclass
class BestEvaluation:
    """Of the validation split, kept over stop and resume."""

    nats: float | None = None
    """Nats per token; None before the first that is a number."""
    step: int = -1
    since: int = 0
    """Evaluations after it; none of them was lower."""

    def add(self, step: int, nats: float) -> None:
        """Count one evaluation. One that is not finite is no improvement."""
        if math.isfinite(nats) and (self.nats is None or nats < self.nats):
            self.nats, self.step, self.since = nats, step, 0
        else:
            self.since += 1

    def is_long_ago(self, training: TrainingConfig) -> bool:
        """Whether training.early_stopping_patience evaluations have passed since."""
        patience = training.early_stopping_patience
        return patience is not None and self.since >= patience

    @property
    def sentence(self) -> str:
        """Why a run ends that has waited long enough."""
        best = "never a number" if self.nats is None else f"lowest at step {self.step:,}, {self.nats:.4f} nats"
        times = "evaluation" if self.since == 1 else f"{self.since} evaluations"
        return f"stopped early: the loss on validation did not fall at the last {times}; it was {best}"
