"""Recordings as files of ours: the dashboard reads a trace or counts by parts and again, a recording is read once."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moe_core.errors import TraceError
from moe_core.progress import Progress, silent
from moe_core.routing.opening import kind_of_file, open_routing
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.routing.trace.trace import RoutingTrace

Holds = Literal["tokens", "counts"]
"""Routing token by token, a trace, or counts."""
_FOLDER = tempfile.TemporaryDirectory(prefix="moescope-converted-")  # goes with the process


@dataclass(frozen=True)
class FileOfOurs:
    """A trace or counts in a file that RoutingTrace.open or RoutingCounts.load reads."""

    path: Path
    holds: Holds


def file_of_ours(path: Path, progress: Progress = silent) -> FileOfOurs:
    """The file itself where it is ours, else what a recording was converted into. Raises TraceError, UsageError."""
    ours = kind_of_file(path)
    if ours == "counts":
        RoutingCounts.load(path)
        return FileOfOurs(path, "counts")
    if ours == "trace":
        RoutingTrace.open(path)
        return FileOfOurs(path, "tokens")
    return _converted(path, progress)


def _converted(path: Path, progress: Progress) -> FileOfOurs:
    name = hashlib.sha256(str(path).encode()).hexdigest()[:32]
    place = Path(_FOLDER.name) / f"{name}.parquet"
    routing = open_routing(path, convert_to=place, progress=progress).routing
    if isinstance(routing, RoutingCounts):
        place = place.with_suffix(".counts.parquet")
        routing.save(place)
        return FileOfOurs(place, "counts")
    if not place.is_file():
        raise TraceError(f"{str(path)!r} was not converted; expected a recording, see docs/trace-format.md")
    return FileOfOurs(place, "tokens")
