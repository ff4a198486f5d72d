"""count_files: the counts of many files, added up in the order of their names whoever counted them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from moe_core.errors import TraceError, UsageError
from moe_core.progress import Progress, silent
from moe_core.routing.trace.arrays import some
from moe_core.routing.trace.counting import By
from moe_core.routing.trace.groups import MAX_NUMBERS
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.routing.workers.adding import Adder, LeftOut
from moe_core.routing.workers.crew import Engine, ThisProcess
from moe_core.routing.workers.found_files import find_files
from moe_core.routing.workers.one_file import Fault, FileFacts, Foreign, Job, count, look
from moe_core.words import count_of

EngineName = Literal["processes", "ray"]
BYTES_OF_A_WORKER = 2**27
"""Of files, counted in about a second."""
_SAME_MODEL = ("layers", "num_experts", "top_k", "unit", "varying_experts", "null_experts")


@dataclass(frozen=True)
class CountedFiles:
    """What count_files gives."""

    counts: RoutingCounts
    files: tuple[str, ...]
    """The files that were counted, in their order, by the names that stand before their sources."""
    damaged: Mapping[str, str]
    """Files that were left out as damaged: name -> why."""
    passed_over: Mapping[str, Foreign]
    """Parquet files in a folder that are no traces: counts, which may be of the same tokens, or nothing of ours."""
    workers: int


def count_files(
    paths: str | Path | Sequence[str | Path],
    *,
    by: By = "source",
    extras: Sequence[str] = (),
    same_sources: bool = False,
    skip_damaged: bool = False,
    workers: int | None = None,
    engine: EngineName = "processes",
    address: str | None = None,
    out: Path | None = None,
    progress: Progress = silent,
) -> CountedFiles:
    """The counts of all files, the same to the last bit whatever `workers` and `engine`.

    `paths`: a folder stands for all traces in it and below; a glob or a file also for counts and recordings of any
    known format. `by` and `extras` as of `RoutingTrace.counts`; of counts, `extras` are names that they have.
    Ids of sources are only told apart within a file, so source 3 of a.parquet becomes "a.parquet:3" where there are
    several files; with `same_sources` it is source 3 of every file. `skip_damaged` leaves damaged files out and notes
    it. `workers`: processes, at most one for each file; None = one for each processor where there is enough to do; with
    one nothing is started.
    Each holds two parts of a file at a time. `engine` "ray": the cluster at `address`, at RAY_ADDRESS, else one of this
    machine's own. `out`: the file that the counts will be written to, which is not counted itself.
    A script calls this under `if __name__ == "__main__":`, for processes import the script.
    Raises TraceError or UsageError in one line that names the file.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    for name, value, known in (("by", by, get_args(By)), ("engine", engine, get_args(EngineName))):
        if value not in known:
            raise UsageError(f"{name} is {value!r}; expected one of {', '.join(known)}")
    if workers is not None and workers < 1:
        raise UsageError(f"workers is {workers}; expected 1 or more")
    found = find_files(given, out)
    alone = len(found) == 1
    jobs = [
        Job(
            one.path,
            one.name,
            one.from_folder,
            by,
            tuple(extras),
            alone,
            "" if alone or same_sources else f"{one.name}:",
        )
        for one in found
    ]
    count_of_workers = min(workers or _affordable_workers(jobs), len(jobs))
    left = LeftOut(skip_damaged)
    with _engine(engine, count_of_workers, len(jobs), address) as started:
        jobs, facts = _looked_at(started, jobs, left, progress)
        _check_one_model(jobs, facts)
        _check_extras(jobs, facts)
        _check_groups(jobs, facts, same_sources)
        names, counts = _counted(started, jobs, facts, left, progress)
    return CountedFiles(counts, tuple(names), left.damaged, left.passed_over, count_of_workers)


def _affordable_workers(jobs: Sequence[Job]) -> int:
    """One for each processor, but no more than have enough to do to be worth their start, which takes a second."""
    size = sum(job.path.stat().st_size for job in jobs if job.path.exists())
    return min(os.cpu_count() or 1, 1 + size // BYTES_OF_A_WORKER)


def _engine(name: EngineName, workers: int, items: int, address: str | None) -> Engine:
    if name == "ray":
        from moe_core.routing.workers.ray_cluster import RayCluster

        return RayCluster(workers, address)
    if address is not None:
        raise UsageError(f"address is {address!r}, which only engine 'ray' uses; leave it out or choose that engine")
    if workers == 1:
        return ThisProcess()
    from moe_core.routing.workers.processes import Processes

    return Processes(workers, items)


def _looked_at(
    engine: Engine, jobs: Sequence[Job], left: LeftOut, progress: Progress
) -> tuple[list[Job], list[FileFacts | None]]:
    """The jobs that are to be counted, and what is known of each before: so that what cannot add up is said at once."""
    found: dict[int, FileFacts | None] = {}
    for done, (number, result) in enumerate(engine.run(look, jobs, lambda: True, lambda _: None), 1):
        if isinstance(result, Fault):
            left.take(jobs[number], result)
        else:
            found[number] = result
        progress("looking at files", done, len(jobs))
    if not found:
        if left.damaged:
            raise TraceError(
                f"all {count_of(len(jobs), 'file')} are damaged; the first: {next(iter(left.damaged.values()))}"
            )
        raise TraceError(
            f"none of {count_of(len(jobs), 'Parquet file')} is a trace, such as {next(iter(left.passed_over))!r}; "
            "to add up counts or recordings, name the files or a glob"
        )
    order = sorted(found)
    return [jobs[number] for number in order], [found[number] for number in order]


def _known(jobs: Sequence[Job], facts: Sequence[FileFacts | None]) -> list[tuple[Job, FileFacts]]:
    return [(job, fact) for job, fact in zip(jobs, facts, strict=True) if fact is not None]


def _check_one_model(jobs: Sequence[Job], facts: Sequence[FileFacts | None]) -> None:
    known = _known(jobs, facts)
    for job, fact in known[1:]:
        for name in _SAME_MODEL:
            here, first = getattr(fact, name), getattr(known[0][1], name)
            if here != first:
                shown = [f"{some(value)} ({len(value)})" if name == "layers" else value for value in (here, first)]
                raise TraceError(
                    f"{job} has {name} = {shown[0]}, {known[0][0]} {shown[1]}; only files of one model add up"
                )


def _check_extras(jobs: Sequence[Job], facts: Sequence[FileFacts | None]) -> None:
    for job, fact in _known(jobs, facts):
        missing = [name for name in job.extras if name not in fact.extras]
        if missing:
            known = ", ".join(fact.extras) or "none"
            raise UsageError(f"extra {missing[0]!r} is not in {job}, which has {known}; count without it")


def _check_groups(jobs: Sequence[Job], facts: Sequence[FileFacts | None], same_sources: bool) -> None:
    """Refuse, before hours of counting, more counts than one table holds."""
    known = [fact for _, fact in _known(jobs, facts)]
    if not known:
        return
    by, first = jobs[0].by, known[0]
    if by == "source":
        groups = max(one.groups for one in known) if same_sources else sum(one.groups for one in known)
    else:
        groups = len({domain for one in known for domain in one.domains})
    steps, L, E = max(one.steps for one in known), len(first.layers), first.num_experts
    if steps * L * groups * E > MAX_NUMBERS:
        what = "sources" if by == "source" else "domains"
        raise TraceError(
            f"{groups:,} {what} x {L} layers x {E} experts{f' x {steps:,} steps' if steps > 1 else ''} are more than "
            f"{MAX_NUMBERS:,} counts; count {'by domain (--by domain)' if by == 'source' else 'fewer files at a time'}"
        )


def _counted(
    engine: Engine, jobs: Sequence[Job], facts: Sequence[FileFacts | None], left: LeftOut, progress: Progress
) -> tuple[list[str], RoutingCounts]:
    """The names of the counted files, and their sum."""
    adder = Adder(jobs)
    known = _known(jobs, facts)
    tokens = sum(fact.tokens for _, fact in known) if len(known) == len(jobs) else None
    done = 0

    def heard(counted: int) -> None:
        if tokens is None:
            progress(f"counting files ({counted:,} tokens)", done, len(jobs))
        else:
            progress(f"counting tokens ({done:,} of {count_of(len(jobs), 'file')})", min(counted, tokens), tokens)

    heard(0)
    for number, result in engine.run(count, jobs, adder.has_room, heard):
        done += 1
        if isinstance(result, Fault):
            left.take(jobs[number], result)
            adder.take(number, None)
        else:
            adder.take(number, result)
    if tokens is not None:
        heard(tokens)
    return adder.names, adder.total(left)
