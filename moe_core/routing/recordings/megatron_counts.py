"""Megatron-LM's tokens_per_expert/rank{r}.jsonl (--save-tokens-per-expert-interval): counts of a rank's own experts.

    {"iter": 100, "block": "decoder", "layer": 3, "tpe": [[128, 64], [96, 80]]}

A line for each layer and iteration that was saved; `tpe` has a list for each microbatch. The ranks of a layer, in the
order of their numbers, hold its experts side by side. Where there are more ranks than experts, as --num-experts says,
they go round: each hold the experts of another one, for tokens of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moe_core.errors import TraceError, shortened
from moe_core.progress import Progress
from moe_core.recording_formats import title_of
from moe_core.routing.recordings.counted import Counted, note, span
from moe_core.routing.recordings.pieces import Options, reason
from moe_core.routing.recordings.rank_files import rank_files
from moe_core.routing.trace.checks import MAX_EXPERTS
from moe_core.routing.trace.groups import MAX_NUMBERS, check_number
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.routing.trace.types import Int64Array

PATTERN = "rank*.jsonl"
NAME = re.compile(r"rank(\d+)\.jsonl")
MAX_LINE_BYTES = 2**26
MOST_COUNTED = 2**53
MOST_LAYERS = 10_000
ALIGNMENT = 16
"""FP8 and FP4 training fills the tokens of each expert up to a multiple of this, before they are counted."""
SURE_COUNTS = 8
"""Fewer counts of two ranks may be the same by chance."""
_LOOK_AT = 256
Place = tuple[int, int]
"""Iteration and layer."""


@dataclass
class _Rank:
    """What a file holds."""

    path: Path
    number: int
    counts: dict[Place, Int64Array] = field(default_factory=dict)
    """[local experts], the microbatches of an iteration added up."""
    aligned: bool = True
    """Is every count of every microbatch a multiple of ALIGNMENT?"""

    @property
    def layers(self) -> set[int]:
        return {layer for _, layer in self.counts}

    @property
    def local(self) -> int:
        """Experts of its own."""
        return len(next(iter(self.counts.values())))


@dataclass
class _Done:
    """How much of all files is read."""

    progress: Progress
    total: int
    read: int = 0

    def add(self, size: int) -> None:
        self.progress("reading", self.read, self.total)
        self.read += size


def is_recording(path: Path) -> bool:
    """Does its first line begin as these do?"""
    try:
        with path.open("rb") as file:
            start = file.read(_LOOK_AT)
    except OSError:
        return False
    return all(key in start for key in (b'"iter"', b'"block"', b'"layer"', b'"tpe"'))


def open_counts(path: Path, options: Options, progress: Progress) -> RoutingCounts:
    """The counts of all ranks by iteration. Raises TraceError naming file and line."""
    files = rank_files(path, PATTERN)
    notes: list[str] = []
    done = _Done(progress, sum(file.stat().st_size for file in files))
    ranks = [_read_rank(file, number, files, notes, done) for number, file in enumerate(files)]
    ranks = [rank for rank in ranks if rank.counts]
    if not ranks:
        raise TraceError(f"{str(path)!r} has no counts of a decoder's layers; expected lines with iter, layer and tpe")
    if path.is_file():
        others = [file for file in path.parent.glob(PATTERN) if file != path]
        if others:
            note(notes, f"these are the experts of one rank alone: {len(others)} more files lie beside it")
    else:
        _check_numbers(path, [rank.number for rank in ranks], options)
    sizes = sum(rank.local * len(rank.counts) for rank in ranks)
    filled = sizes >= SURE_COUNTS and all(rank.aligned for rank in ranks)
    if filled:
        note(notes, f"every count is a multiple of {ALIGNMENT}, as FP8 training fills them up: tokens are fewer")
    ranks = _without_copies(ranks, options.num_experts, notes)
    iterations = _whole_iterations(path, ranks, notes)
    layers = sorted(set().union(*(rank.layers for rank in ranks)))
    counts = _side_by_side(path, ranks, iterations, layers, options.num_experts, notes)
    counted = Counted(
        path, title_of("megatron-counts"), counts[:, :, None], iterations, layers, uneven=filled, notes=notes
    )
    return counted.routing_counts(options)


def _read_rank(path: Path, place: int, files: list[Path], notes: list[str], done: _Done) -> _Rank:
    """Everything in a file. A last line without an end was being written: it is left out."""
    named = NAME.fullmatch(path.name)
    rank = _Rank(path, int(named[1]) if named else place)
    held = MAX_NUMBERS // len(files)
    for line, number in _lines(path, notes):
        done.add(len(line))
        where = f"{str(path)!r}, line {number}"
        record = _record(line, where)
        if record["block"] != "decoder":
            note(notes, f"layers of the block {shortened(record['block'])} are left out: they are not the decoder's")
            continue
        counts_E, aligned = _counts(record["tpe"], where)
        rank.aligned &= aligned
        if rank.counts and len(counts_E) != rank.local:
            raise TraceError(f"{where}: {len(counts_E)} experts; expected {rank.local} as in the lines before")
        where_counted = (record["iter"], record["layer"])
        if where_counted in rank.counts:
            note(notes, "iterations that were saved twice, as after a restart, are as they were saved last")
        rank.counts[where_counted] = counts_E
        if len(rank.counts) * len(counts_E) > held:
            raise TraceError(f"{where}: more than {held:,} counts; give fewer iterations, or fewer files, at a time")
    return rank


def _lines(path: Path, notes: list[str]) -> Iterator[tuple[bytes, int]]:
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise TraceError(
                        f"{str(path)!r}, line {number} has more than {MAX_LINE_BYTES:,} bytes; expected a layer a line"
                    )
                if not line.endswith(b"\n") and not _is_whole(line):
                    note(notes, f"{path.name} ends within line {number}: it is left out")
                elif line.strip():
                    yield line, number
    except OSError as error:
        raise TraceError(f"cannot read {str(path)!r}: {reason(error)}; check the path") from None


def _is_whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _record(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{where} is no JSON ({reason(error)}); copy the file again") from None
    if not isinstance(record, dict) or not {"iter", "block", "layer", "tpe"} <= set(record):
        raise TraceError(f"{where}: expected an object with iter, block, layer and tpe")
    for key, limit in (("iter", MOST_COUNTED), ("layer", MOST_LAYERS)):
        if not isinstance(record[key], int) or isinstance(record[key], bool) or not 0 <= record[key] < limit:
            raise TraceError(f"{where}: {key} is {shortened(record[key])}; expected a whole number from 0 on")
    if not isinstance(record["block"], str):
        raise TraceError(f"{where}: block is {shortened(record['block'])}; expected decoder or mtp")
    return record


def _counts(microbatches: object, where: str) -> tuple[Int64Array, bool]:
    """[E] the sum over the microbatches; are all of their counts multiples of ALIGNMENT?"""
    try:
        counts = np.array(microbatches)
    except (ValueError, OverflowError):  # lists of different lengths; a number of many digits
        counts = np.array(None)
    if counts.ndim != 2 or not counts.size or not np.issubdtype(counts.dtype, np.integer):
        raise TraceError(
            f"{where}: tpe is no list of lists of counts; expected [[count of each expert] of a microbatch]"
        )
    if counts.shape[1] > MAX_EXPERTS or counts.min() < 0 or counts.max() > MOST_COUNTED // len(counts):
        raise TraceError(
            f"{where}: counts from {counts.min()} to {counts.max()} of {counts.shape[1]} experts; expected counts from "
            f"0 on of {MAX_EXPERTS} experts at most"
        )
    return counts.sum(axis=0, dtype=np.int64), not (counts % ALIGNMENT).any()


def _check_numbers(path: Path, numbers: list[int], options: Options) -> None:
    missing = sorted(set(range(numbers[-1] + 1)) - set(numbers))
    if missing and options.num_experts is None:
        raise TraceError(
            f"{str(path)!r} has ranks {span(numbers)}, but no rank{missing[0]}.jsonl: its experts would be missing; "
            "copy it, or say --num-experts if that rank has no layer with experts"
        )


def _without_copies(ranks: list[_Rank], wanted: int | None, notes: list[str]) -> list[_Rank]:
    """Ranks that split each of their experts (expert tensor parallelism) get the same tokens, and follow each other."""
    if wanted == len(ranks) * ranks[0].local:
        return ranks
    kept = [
        rank
        for before, rank in zip([None, *ranks], ranks, strict=False)
        if before is None or not _is_copy(rank, before)
    ]
    if len(kept) < len(ranks):
        note(
            notes,
            f"{len(ranks) - len(kept)} of {len(ranks)} ranks have all the counts of the rank before: the same experts "
            "in parts, which count once",
        )
    return kept


def _is_copy(rank: _Rank, other: _Rank) -> bool:
    """Are all counts equal, enough of them and not all the same number, so that it cannot be chance?"""
    if rank.counts.keys() != other.counts.keys() or rank.local != other.local:
        return False
    values = np.concatenate(list(rank.counts.values()))
    if len(values) < SURE_COUNTS or values.min() == values.max():
        return False
    return all(np.array_equal(counts_E, other.counts[place]) for place, counts_E in rank.counts.items())


def _whole_iterations(path: Path, ranks: list[_Rank], notes: list[str]) -> list[int]:
    """The iterations that every rank saved with all of its layers."""
    wanted = {rank.number: rank.layers for rank in ranks}
    iterations = sorted(set().union(*({iteration for iteration, _ in rank.counts} for rank in ranks)))
    whole, first_gap = [], ""
    for iteration in iterations:
        gap = next(
            (
                f"rank {rank.number}, layer {layer}"
                for rank in ranks
                for layer in sorted(wanted[rank.number])
                if (iteration, layer) not in rank.counts
            ),
            "",
        )
        if not gap:
            whole.append(iteration)
        first_gap = first_gap or (f"iteration {iteration} of {gap}" if gap else "")
    if not whole:
        raise TraceError(f"{str(path)!r}: no iteration was saved by every rank; {first_gap} is missing")
    if first_gap:
        note(
            notes,
            f"{len(iterations) - len(whole)} of {len(iterations)} iterations were not saved whole and are left out: "
            f"{first_gap} is missing",
        )
    return whole


def _side_by_side(
    path: Path, ranks: list[_Rank], iterations: list[int], layers: list[int], wanted: int | None, notes: list[str]
) -> Int64Array:
    """[S,L,E] of all ranks."""
    local = ranks[0].local
    other = next((rank for rank in ranks if rank.local != local), None)
    if other is not None:
        raise TraceError(
            f"{str(other.path)!r} has {other.local} experts, {str(ranks[0].path)!r} {local}; expected as many in each"
        )
    of_layer = {layer: [rank for rank in ranks if layer in rank.layers] for layer in layers}
    most = max(len(found) for found in of_layer.values())
    E = wanted or most * local
    check_number(len(iterations), len(layers), 1, E)
    counts = np.zeros((len(iterations), len(layers), E), dtype=np.int64)
    for place, (layer, found) in enumerate(of_layer.items()):
        if len(found) * local % E:
            raise TraceError(
                f"{str(path)!r}, layer {layer}: {len(found)} ranks of {local} experts each; expected {E} experts, or "
                "a multiple of them: files of ranks are missing, or --num-experts is another number"
            )
        for number, rank in enumerate(found):
            begin = number * local % E
            for step, iteration in enumerate(iterations):
                counts[step, place, begin : begin + local] += rank.counts[iteration, layer]
    if most * local > E:
        note(
            notes,
            f"{most} ranks hold {E} experts {most * local // E} times over: each time is taken to be of other tokens "
            "(expert data parallelism; of pipeline stages give one at a time)",
        )
    return counts
