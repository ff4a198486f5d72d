"""A training that was shortened to keep its time budget: how far, and the command that trains the rest.

A short training ends with a higher loss than a whole one. Who reads the result must know which of the two it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from moe_core.config import Config
from moe_core.program import program
from moe_core.runs.status import RunStatus
from moe_core.words import duration


@dataclass(frozen=True)
class LostSteps:
    """What a run was asked to train, and what its time budget left of it."""

    run: str
    asked: int
    """Steps of its configuration."""
    steps: int
    """Steps it trains instead; fewer."""
    budget_seconds: float
    seconds_more: float | None
    """What the rest would take at the speed it had; None where no speed is known."""

    @property
    def sentence(self) -> str:
        """What happened and what it means for the figures."""
        return (
            f"Shortened to {self.steps:,} of the {self.asked:,} steps that were asked for: this computer was too slow, "
            f"or too busy with other programs, for all of them in {duration(self.budget_seconds)}. Its loss is that of "
            "a shorter training and is no measure of a whole one."
        )

    @property
    def arguments(self) -> list[str]:
        """The program's arguments that train the rest, however long it takes."""
        return ["--run", self.run, "--resume", "--training.time_budget_seconds", "none"]

    @property
    def command(self) -> str:
        """The whole command, to be typed."""
        return f"{program()} {' '.join(self.arguments)}"

    @property
    def rest(self) -> str:
        """ "the other 181 steps, about 1 min 20 s at the speed it had"."""
        time = "" if self.seconds_more is None else f", about {duration(self.seconds_more)} at the speed it had"
        return f"the other {self.asked - self.steps:,} steps{time}"


def lost_steps(name: str, config: Config, status: RunStatus | None) -> LostSteps | None:
    """What the time budget took from the run; None where nothing was lost."""
    training = config.training
    if status is None or training.time_budget_seconds is None or not 0 < status.steps < training.steps:
        return None
    speed = status.tokens_per_second
    tokens = (training.steps - status.steps) * training.batch_size * training.seq_len
    return LostSteps(
        name, training.steps, status.steps, training.time_budget_seconds, tokens / speed if speed else None
    )
