"""The one way to open a file of routing: a trace or counts of ours, or what an engine or a trainer recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from moe_core.progress import Progress, silent
from moe_core.recording_formats import RecordingFormat
from moe_core.routing.recordings.conversion import Texts, checked_options, convert, read
from moe_core.routing.recordings.detection import format_at
from moe_core.routing.trace import counts_file, parquet
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.routing.trace.trace import AnyRouting, open_or_load

OURS = {parquet.METADATA_KEY: "trace", counts_file.METADATA_KEY: "counts"}
"""What a Parquet file of ours is, by the key that its metadata has."""


@dataclass(frozen=True)
class Opened:
    """Routing from a file, and what kind of file it was."""

    routing: AnyRouting
    format: str
    """ "trace" or "counts" for a file of ours, else the name of a recording's format."""
    title: str
    """What made it, for people."""
    notes: tuple[str, ...] = ()
    """What a reader must know, a sentence each: of counts, and of what became a trace in a file."""


def kind_of_file(path: Path) -> str | None:
    """ "trace" or "counts" for a file of ours, None for anything else, unreadable files too."""
    if not path.is_file():  # opening a pipe would wait for ever
        return None
    try:
        stored = pq.read_metadata(path).metadata or {}
    except (pa.ArrowException, OSError, ValueError):
        return None
    return next((kind for key, kind in OURS.items() if key in stored), None)


def open_routing(
    path: str | Path,
    *,
    format: str = "auto",
    convert_to: Path | None = None,
    token_ids: str | Path | None = None,
    num_experts: int | None = None,
    top_k: int | None = None,
    layers: Sequence[int] | None = None,
    texts: Texts | None = None,
    progress: Progress = silent,
) -> Opened:
    """What lies at `path`, a file or a folder or glob of rank files, ready to be measured.

    A trace that is larger than memory stays on disk. A recording of tokens becomes a trace: in the file `convert_to`,
    in bounded memory, or without one in memory. The other arguments are those of recordings.convert.
    Raises TraceError, in one line, for what is missing, damaged or of no known format; UsageError for an argument.
    """
    place = Path(path)
    ours = kind_of_file(place) if format == "auto" else None
    if ours == "counts":
        stored = RoutingCounts.load(place)
        return Opened(stored, ours, "counts", stored.notes)
    if ours == "trace":
        return Opened(open_or_load(place), ours, "trace")
    chosen, _ = format_at(place, format)
    options = checked_options(token_ids, num_experts, top_k, layers)
    if chosen is not None and chosen.holds == "counts":
        counts: RoutingCounts = import_module(chosen.reader).open_counts(place, options, progress)
        return Opened(counts, chosen.name, chosen.title, counts.notes)
    asked = {"token_ids": token_ids, "num_experts": num_experts, "top_k": top_k, "layers": layers, "texts": texts}
    if convert_to is None:
        trace = read(place, format=format, **asked)  # type: ignore[arg-type]
        return Opened(trace, *_named(chosen, trace.source))
    found = convert(place, convert_to, format=format, progress=progress, **asked)  # type: ignore[arg-type]
    return Opened(open_or_load(convert_to), *_named(chosen, found.source, found.format), tuple(found.notes))


def _named(chosen: RecordingFormat | None, source: str, format: str = "answers") -> tuple[str, str]:
    """Name and title of a recording's format; answers of servers tell theirs in their source."""
    return (chosen.name, chosen.title) if chosen is not None else (format, source.split(",")[0])
