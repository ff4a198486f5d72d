"""How far a run is, as status.json keeps it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from moe_core.json_values import json_safe
from moe_core.runs.checksum import read_typed, with_checksum
from moe_core.runs.metric_log import Count, Figure, Seconds, Step, Text

State = Literal["preparing", "running", "finished", "stopped", "failed"]
Moment = Annotated[float, Field(ge=0, le=2.5e11)]
"""Seconds since 1970, before the year 9900."""


@dataclass(frozen=True)
class RunStatus:
    """How far a run is. Times in seconds; started_at and updated_at since 1970."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    state: State
    step: Step = 0
    steps: Step = 0
    tokens: Count = 0
    tokens_per_second: Figure = None
    seconds_left: Seconds | None = None
    elapsed_seconds: Seconds = 0.0
    started_at: Moment = 0.0
    updated_at: Moment = 0.0
    pid: Annotated[int, Field(ge=0, lt=2**31)] = 0
    message: Text = ""

    def to_bytes(self) -> bytes:
        """The file; what is not finite is null."""
        return with_checksum(json_safe(asdict(self)))


def status_from_bytes(content: bytes, path: Path) -> tuple[RunStatus, bool]:
    """Read status.json, and whether it was verified. Raises RunError that names the file and the first wrong field."""
    return read_typed(
        content, path, _reader(), "is not the status of a run", "delete the file, --resume writes a new one"
    )


@cache
def _reader() -> TypeAdapter[RunStatus]:
    return TypeAdapter(RunStatus)
