"""The counts of files as they come, added up in the order of their files; and which files were left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from moe_core.errors import TraceError, UsageError
from moe_core.routing.trace.groups import MAX_NUMBERS
from moe_core.routing.trace.routing_counts import RoutingCounts, check_addable
from moe_core.routing.workers.one_file import Fault, Foreign, Job
from moe_core.words import count_of

LEAST_NUMBERS = 2**20
"""Counts that wait are added up when there are as many as in the sum, but not fewer than this: 8 MiB."""
NAMED = 5
"""Files, or sources of them, that a sentence names one by one."""


class LeftOut:
    """Files that are not counted, and why; a fault that is no reason to leave a file out is raised."""

    def __init__(self, skip_damaged: bool) -> None:
        self._skip_damaged = skip_damaged
        self.damaged: dict[str, str] = {}
        self.passed_over: dict[str, Foreign] = {}

    def take(self, job: Job, fault: Fault) -> None:
        if fault.kind in ("counts", "foreign"):
            self.passed_over[job.name] = fault.kind
        elif fault.kind == "damaged" and self._skip_damaged:
            self.damaged[job.name] = fault.line
        elif fault.kind == "damaged":
            raise TraceError(fault.line)
        else:
            raise UsageError(fault.line)

    def all_damaged(self) -> TraceError:
        """The error where nothing is left to be counted."""
        return TraceError(f"all files are damaged; the first: {next(iter(self.damaged.values()))}")

    def notes(self) -> list[str]:
        """What a reader of the counts must know."""
        if not self.damaged:
            return []
        named = ", ".join(list(self.damaged)[:NAMED])
        more = f" and {len(self.damaged) - NAMED} more" if len(self.damaged) > NAMED else ""
        return [f"{count_of(len(self.damaged), 'damaged file')} left out: {named}{more}"]


class Adder:
    """Adds counts up in the order of their files, of which sums of weights depend in the last bit. Counts that come
    before their turn wait; while too many do, no further file is begun."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.names: list[str] = []
        self._jobs = jobs
        self._next = 0
        self._early: dict[int, RoutingCounts | None] = {}
        self._in_turn: list[RoutingCounts] = []
        """The sum so far, then what is to be added to it: all at once, for each sum copies everything."""
        self._waiting = 0
        """Numbers that are to be added to it."""
        self._first: tuple[Job, RoutingCounts] | None = None
        self._sources: dict[str, None] = {}

    def has_room(self) -> bool:
        """May another file be begun?"""
        return sum(_numbers(one) for one in self._early.values() if one is not None) < MAX_NUMBERS

    def take(self, number: int, counts: RoutingCounts | None) -> None:
        """Of job `number`; None where it is left out. Raises TraceError where the model is another one."""
        self._early[number] = counts
        while self._next in self._early:
            here, job = self._early.pop(self._next), self._jobs[self._next]
            self._next += 1
            if here is not None:
                self._append(job, here)

    def _append(self, job: Job, counts: RoutingCounts) -> None:
        if self._first is None:
            self._first = (job, counts)
        try:
            check_addable(self._first[1], counts)
        except TraceError as error:
            raise TraceError(f"{job} (there) does not go with {self._first[0]} (here): {error}") from None
        self.names.append(job.name)
        self._sources |= dict.fromkeys([counts.source] if counts.source else [])
        self._waiting += _numbers(counts) if self._in_turn else 0
        self._in_turn.append(replace(counts, source=""))
        if self._waiting >= max(LEAST_NUMBERS, _numbers(self._in_turn[0])):
            self._in_turn, self._waiting = [RoutingCounts.sum_of(self._in_turn)], 0

    def total(self, left: LeftOut) -> RoutingCounts:
        """Of all that was taken. Raises TraceError where everything was left out."""
        if not self._in_turn:
            raise left.all_damaged()
        total = RoutingCounts.sum_of(self._in_turn)
        named = list(self._sources)[:NAMED]
        source = ", ".join(named) + (" and others" if len(self._sources) > NAMED else "")
        if len(self.names) > 1:
            source = f"{len(self.names):,} files{': ' if source else ''}{source}"
        return replace(total, source=source, notes=(*total.notes, *left.notes()))


def _numbers(counts: RoutingCounts) -> int:
    return int(counts.tokens_per_expert.size) + sum(int(values.size) for values in counts.extras.values())
