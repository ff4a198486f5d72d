"""How far a run is, as status.json keeps it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from moe_core.errors import RunError
from moe_core.json_values import json_safe
from moe_core.runs.checksum import KEY, is_verified, with_checksum
from moe_core.runs.files import json_object
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
    verified = is_verified(content, str(path))
    tree = json_object(content, path)
    tree.pop(KEY, None)
    try:
        return _reader().validate_json(json.dumps(tree)), verified
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(str(part) for part in first['loc']) or 'the file'}: {first['msg']}"
        raise RunError(
            f"{str(path)!r} is not the status of a run ({reason}); delete the file, --resume writes a new one"
        ) from None


@cache
def _reader() -> TypeAdapter[RunStatus]:
    return TypeAdapter(RunStatus)
