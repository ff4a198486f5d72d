"""What a worker does with one file: look at what is in it, and count it part by part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from moe_core.errors import MoescopeError, TraceError, UsageError
from moe_core.progress import Progress
from moe_core.routing.opening import kind_of_file, open_routing
from moe_core.routing.recordings.detection import format_at
from moe_core.routing.trace.counting import EXTRAS, By, counts_of, regrouped
from moe_core.routing.trace.groups import Unit
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.routing.trace.trace import StoredTrace

Result = TypeVar("Result")
Foreign = Literal["counts", "foreign"]
"""A Parquet file that lies in a folder of traces and is none: counts of ours, or nothing of ours."""
Report = Callable[[int], None]
"""Called with the number of tokens that are counted so far."""


@dataclass(frozen=True)
class Job:
    """One file, and how it is to be counted."""

    path: Path
    name: str
    from_folder: bool
    by: By
    extras: tuple[str, ...]
    alone: bool
    """Is it the only file? Of several, none may be one that is read together with its neighbours."""
    prefix: str
    """What goes before the name of each of its sources: "a.parquet:"; empty where sources keep their names."""

    def __str__(self) -> str:
        return repr(str(self.path))


@dataclass(frozen=True)
class FileFacts:
    """What is known of a file of ours before it is counted."""

    tokens: int
    groups: int
    """Sources, or for counts of sources and domains; of no meaning where they are not told apart."""
    domains: tuple[str, ...]
    steps: int
    layers: tuple[int, ...]
    num_experts: int
    top_k: int
    unit: Unit
    varying_experts: bool
    null_experts: int
    extras: tuple[str, ...]
    """Names of the extras that it can give."""


@dataclass(frozen=True)
class Fault:
    """Why a file is not counted, in one line that names it."""

    line: str
    kind: Literal["damaged", "refused"] | Foreign


def look(job: Job, _: Report) -> FileFacts | Fault | None:
    """The facts of a file of ours; None for a recording, which tells them only when it is read whole."""
    return _guarded(job, lambda: _look(job))


def count(job: Job, report: Report) -> RoutingCounts | Fault:
    """The counts of a file, its sources named after it."""
    found = _guarded(job, lambda: _count(job, report))
    assert found is not None
    return found


def _guarded(job: Job, work: Callable[[], Result | Fault]) -> Result | Fault:
    """What `work` returns, or its error as a value: the caller decides whether it stops everything."""
    try:
        return work()
    except UsageError as error:
        return Fault(_named(job, str(error)), "refused")
    except MoescopeError as error:
        return Fault(_named(job, str(error)), "damaged")
    except OSError as error:
        return Fault(_named(job, f"cannot be read ({error.strerror or error}); check the file"), "damaged")
    except MemoryError:
        return Fault(_named(job, "there is not enough memory to count it; use fewer --workers"), "refused")


def _named(job: Job, line: str) -> str:
    return line if str(job.path) in line else f"{str(job.path)!r}: {line}"


def _look(job: Job) -> FileFacts | Fault | None:
    kind = kind_of_file(job.path)
    if job.from_folder and kind != "trace" and (kind == "counts" or _is_parquet(job.path)):
        return Fault(f"{str(job.path)!r} is no trace", "counts" if kind == "counts" else "foreign")
    if kind == "counts":
        counts = regrouped(RoutingCounts.load(job.path), job.by)
        return FileFacts(
            tokens=counts.num_tokens,
            groups=len(counts.groups),
            domains=tuple(counts.domains),
            steps=len(counts.steps),
            layers=tuple(counts.layers),
            num_experts=counts.num_experts,
            top_k=counts.top_k,
            unit=counts.unit,
            varying_experts=counts.varying_experts,
            null_experts=counts.null_experts,
            extras=tuple(counts.extras),
        )
    if kind != "trace" and not job.from_folder:
        chosen, _ = format_at(job.path, "auto")
        if chosen is not None and chosen.side_by_side and not job.alone:
            raise UsageError(
                f"{job} is of {chosen.title}, whose files of ranks are read side by side: convert their folder first"
            )
        return None
    trace = StoredTrace.open(job.path)
    return FileFacts(
        tokens=trace.num_tokens,
        groups=trace.count_sources() if job.by == "source" else 1,
        domains=tuple(trace.domains) if job.by != "all" else ("all",),
        steps=1,
        layers=tuple(trace.layers),
        num_experts=trace.num_experts,
        top_k=trace.top_k,
        unit="token",
        varying_experts=trace.varying_experts,
        null_experts=trace.null_experts,
        extras=EXTRAS,
    )


def _is_parquet(path: Path) -> bool:
    """Can its metadata be read? A damaged file cannot say what it is, and is not passed over."""
    try:
        pq.ParquetFile(path).close()
    except (pa.ArrowException, OSError, ValueError):
        return False
    return True


def _count(job: Job, report: Report) -> RoutingCounts:
    def tell(_: str, done: int, total: int) -> None:  # noqa: ARG001 - the signature of Progress
        report(done)

    if kind_of_file(job.path) == "trace":
        counts = counts_of(StoredTrace.open(job.path), job.by, job.extras, tell)
    else:
        counts = _counts_of_recording(job, tell)
    report(counts.num_tokens)
    groups = [replace(g, source=None if g.source is None else job.prefix + g.source) for g in counts.groups]
    return replace(counts, groups=groups)


def _counts_of_recording(job: Job, progress: Progress) -> RoutingCounts:
    """Of counts in any format, or of tokens, which go through a trace on the disk so that memory stays bounded."""
    with TemporaryDirectory(prefix="moescope-") as folder:
        routing = open_routing(job.path, convert_to=Path(folder) / "trace.parquet").routing
        if not isinstance(routing, RoutingCounts):
            return counts_of(routing, job.by, job.extras, progress)
    missing = [name for name in job.extras if name not in routing.extras]
    if missing:
        known = ", ".join(routing.extras) or "none"
        raise TraceError(f"extra {missing[0]!r} is not in these counts, which have {known}; count without it")
    return regrouped(routing.without(*(set(routing.extras) - set(job.extras))), job.by)
