"""What a suite found: the fields are the keys of suite.json, in the same order; what is unknown is None."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from moe_core.evaluation.tasks.scores import Against, Score, verdict
from moe_core.json_values import json_safe
from moe_core.runs.evaluation import ParameterCounts


@dataclass(frozen=True)
class Sample:
    """Something the model wrote, for people to look at."""

    title: str
    prompt: str
    text: str


@dataclass(frozen=True)
class TestedScore:
    """A Score held against all others of its suite; see Score for the fields both have."""

    __test__ = False  # no test, whatever its name says to a test runner

    name: str
    value: float | None
    low: float | None
    high: float | None
    level: float | None
    level_is: str
    p_value: float | None
    effect: float | None
    n: int
    unit: str
    against: Against
    p_adjusted: float | None
    """Benjamini-Hochberg over all scores of the suite."""
    verdict: str

    @classmethod
    def of(cls, score: Score, p_adjusted: float) -> TestedScore:
        """`score` with its adjusted p-value (NaN: cannot be tested) and what both say in words."""
        known = json_safe({**asdict(score), "p_adjusted": p_adjusted})
        return cls(**known, verdict=verdict(score, p_adjusted))


@dataclass(frozen=True)
class TaskResult:
    """One benchmark."""

    name: str
    asks: str
    plugin: str | None
    """Where a user's benchmark came from."""
    not_run: str
    """Why it was not run; "" when it was."""
    failed: bool
    """A plugin raised an error, which not_run tells."""
    note: str
    samples: tuple[Sample, ...]
    scores: tuple[TestedScore, ...]


@dataclass(frozen=True)
class SuiteResult:
    """All benchmarks that were asked for, on one run at one step."""

    run: str
    step: int
    seed: int
    windows: str
    """As in Evaluation."""
    parameters: ParameterCounts
    tasks: tuple[TaskResult, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for suite.json or for --json."""
        plain: dict[str, Any] = json_safe(asdict(self))
        return plain
