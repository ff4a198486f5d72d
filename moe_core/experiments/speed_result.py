"""What the arms of a comparison take, and on which machine; the types are the file, as in comparison_result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from moe_core.errors import DataError, first_fault
from moe_core.json_values import json_safe

TRAINING_STEP = "training step"
"""The timed task that every arm does."""
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
NOT_ALWAYS_THERE = frozenset(
    {"bounds", "tuning_nats", "text_tokens", "longer", "exposure", "validation_by_domain", "text"}
)
"""Keys that a file leaves out where there is nothing: old files have none of them and stay as they are."""


@dataclass(frozen=True)
class Environment:
    """Hardware, versions and threads of a measurement."""

    processor: str
    processors_usable: int | None
    """None where the system does not say."""
    instructions: str
    memory_gib: float
    accelerator: str
    threads: int
    load_average_before: float
    system: str
    python: str
    versions: Mapping[str, str]
    """By the library's name."""


@dataclass(frozen=True)
class ArmTimes:
    """Medians and 10th to 90th percentiles over rounds in which all arms take turns."""

    seconds: float
    """Of one call."""
    low: float
    high: float
    times: float
    """How many times as fast as the first arm."""
    times_low: float
    times_high: float


@dataclass(frozen=True)
class TaskTimes:
    """How long each arm takes for one task."""

    tokens: int
    """Of one call."""
    arms: Mapping[str, ArmTimes]
    """By the arm's name; an arm that cannot do the task is missing."""


@dataclass(frozen=True)
class SpeedResult:
    """What all arms take on one machine."""

    __pydantic_config__ = STRICT

    date: str
    """ISO 8601, to the minute."""
    threads: int
    environment: Environment
    tasks: Mapping[str, TaskTimes]
    text: Literal["held-out"] | None = None
    """What was read and continued: held-out text. None = random ids, as before 2026-11-28."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for speed.json."""
        plain: dict[str, Any] = json_safe(asdict(self, dict_factory=without_absent))
        return plain

    def reading(self) -> TaskTimes:
        """The task of reading a text (prefill)."""
        return next(task for name, task in self.tasks.items() if name.startswith("prefill"))


def speed_from_json(content: bytes, where: str) -> SpeedResult:
    """Read speed.json of a comparison's folder. Raises DataError as result_from_json does."""
    try:
        return TypeAdapter(SpeedResult).validate_json(content)
    except ValidationError as error:
        raise DataError(
            f"{where!r} holds no times of this version ({first_fault(error).line}); measure them with --time-again"
        ) from None


def without_absent(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For asdict: a dict of the pairs, less those that files leave out."""
    return {key: value for key, value in pairs if value is not None or key not in NOT_ALWAYS_THERE}
