"""How long steps and evaluations take, hence when the run will end."""

from __future__ import annotations

import math
from dataclasses import dataclass

from moe_core.config import TrainingConfig
from moe_core.training.schedule import evaluations_left, steps_within_budget

# The first look at the speed comes early, so that a slow machine learns it before its warm-up ends.
EARLY_STEPS = 20
# ... and is noisy, so it acts only when the budget would be missed by far.
EARLY_TOLERANCE = 1.25
# Between evaluations every step is looked at: another program may come to the machine in the last minutes. Smaller
# misses wait for the evaluation, so that a hiccup does not change the schedule.
BETWEEN_TOLERANCE = 1.05


@dataclass
class Clock:
    """Seconds spent so far, kept over stop and resume."""

    step_seconds: float = 0.0
    steps: int = 0
    evaluation_seconds: float = 0.0
    evaluations: int = 0
    compiling_seconds: float = 0.0
    """Of steps in which blocks were compiled."""

    @property
    def elapsed(self) -> float:
        """Seconds spent in the loop."""
        return self.step_seconds + self.evaluation_seconds + self.compiling_seconds

    @property
    def seconds_per_step(self) -> float:
        """Mean over all steps so far: a short hiccup of the machine then costs few steps."""
        return self.step_seconds / max(1, self.steps)

    @property
    def seconds_per_evaluation(self) -> float:
        """Mean over all evaluations so far, checkpoint included."""
        return self.evaluation_seconds / max(1, self.evaluations)

    def add_step(self, seconds: float, *, compiling: bool = False) -> None:
        """Count one step; one in which blocks were compiled is no measure of the steps to come."""
        if compiling:
            self.compiling_seconds += seconds
            return
        self.step_seconds += seconds
        self.steps += 1

    def add_evaluation(self, seconds: float) -> None:
        """Count one evaluation with its probe, sample and checkpoint."""
        self.evaluation_seconds += seconds
        self.evaluations += 1

    def seconds_left(self, step: int, steps: int, interval: int) -> float | None:
        """Seconds until the last evaluation is done; None before the first step."""
        if not self.steps:
            return None
        evaluations = evaluations_left(step, steps, interval)
        return (steps - step) * self.seconds_per_step + evaluations * self.seconds_per_evaluation

    @property
    def tolerance(self) -> float:
        """The factor by which the time budget may seem to be missed, right after a step, before steps are lowered."""
        if self.steps < EARLY_STEPS:
            return math.inf
        return EARLY_TOLERANCE if self.steps == EARLY_STEPS else BETWEEN_TOLERANCE

    def fit(self, step: int, steps: int, training: TrainingConfig, *, tolerance: float = 1.0) -> int:
        """`steps`, lowered where they would take over `tolerance` times the rest of the time budget. Never raised."""
        needed = self.seconds_left(step, steps, training.evaluation_interval)
        if training.time_budget_seconds is None or needed is None:
            return steps
        left = training.time_budget_seconds - self.elapsed
        if left > 0 and needed <= left * tolerance:
            return steps
        return steps_within_budget(
            step,
            steps,
            seconds_left=left,
            seconds_per_step=self.seconds_per_step,
            seconds_per_evaluation=self.seconds_per_evaluation,
            interval=training.evaluation_interval,
        )
