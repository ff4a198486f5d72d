"""SGLang's counts of early 2025: expert_distribution_rank{r}_timestamp{t}.csv, one file for a rank and a dump.

A rank counts the choices of the tokens that it sees. Ranks of one tensor-parallel group see the same tokens and write
the same counts; with data-parallel attention each sees tokens of its own. So files of one dump that are equal count
once, and files that differ add up. A dump empties the counters: a rank's files are steps, in the order of their times.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moe_core.errors import TraceError
from moe_core.progress import Progress
from moe_core.recording_formats import title_of
from moe_core.routing.recordings.counted import Counted, note
from moe_core.routing.recordings.pieces import Options, reason
from moe_core.routing.recordings.rank_files import rank_files
from moe_core.routing.trace.checks import MAX_EXPERTS
from moe_core.routing.trace.groups import check_number
from moe_core.routing.trace.routing_counts import RoutingCounts

PATTERN = "expert_distribution_rank*.csv"
HEADER = ["layer_id", "expert_id", "count"]
NAME = re.compile(r"expert_distribution_rank(\d+)_timestamp(\d+(?:\.\d+)?)\.csv")
NUMBER = re.compile(r"-?[0-9]{1,18}")
MOST_BYTES = 2**27
MOST_ROWS = 2_000_000
MOST_LAYERS = 10_000
MOST_COUNTED = 2**53

Cells = dict[tuple[int, int], int]
"""The count of each layer and expert that a file names."""


def is_recording(path: Path) -> bool:
    """Does the file begin as these do?"""
    try:
        with path.open("rb") as file:
            return file.read(64).split(b"\n")[0].strip() == ",".join(HEADER).encode()
    except OSError:
        return False


def open_counts(path: Path, options: Options, progress: Progress) -> RoutingCounts:
    """The counts of one file, or of the files of all ranks. Raises TraceError naming file and line."""
    files = rank_files(path, PATTERN)
    notes: list[str] = []
    dumps = [_sum_of_ranks(dump, notes, progress) for dump in _dumps(path, files)]
    layers = sorted({layer for cells in dumps for layer, _ in cells})
    if not layers:
        raise TraceError(f"{str(path)!r} counts nothing; expected rows {','.join(HEADER)}")
    E = max(expert for cells in dumps for _, expert in cells) + 1
    check_number(len(dumps), len(layers), 1, E)
    counts = np.zeros((len(dumps), len(layers), 1, E), dtype=np.int64)
    for step, cells in enumerate(dumps):
        for (layer, expert), count in cells.items():
            counts[step, layers.index(layer), 0, expert] = count
    counted = Counted(path, title_of("sglang-csv"), counts, range(len(dumps)), layers, knows_experts=False, notes=notes)
    return counted.routing_counts(options)


def _dumps(path: Path, files: list[Path]) -> list[list[Path]]:
    """The files of each dump: the first of every rank, the second ... in the order of their times."""
    of_rank: dict[str, list[tuple[float, Path]]] = {}
    for file in files:
        found = NAME.fullmatch(file.name)
        of_rank.setdefault(found[1] if found else file.name, []).append((float(found[2]) if found else 0.0, file))
    sizes = {rank: len(found) for rank, found in of_rank.items()}
    first = next(iter(sizes))
    other = next((rank for rank, size in sizes.items() if size != sizes[first]), None)
    if other is not None:
        raise TraceError(
            f"{str(path)!r} has {sizes[first]} dumps of rank {first}, {sizes[other]} of rank {other}; expected as many "
            "of each: give the files of one dump, as a folder or a pattern"
        )
    return [[sorted(of_rank[rank])[number][1] for rank in of_rank] for number in range(sizes[first])]


def _sum_of_ranks(files: list[Path], notes: list[str], progress: Progress) -> Cells:
    """The counts of a dump; of files that are equal one counts."""
    different: list[Cells] = []
    for number, file in enumerate(files):
        progress("reading", number, len(files))
        cells = _cells(file, notes)
        if cells not in different:
            different.append(cells)
    if len(different) < len(files):
        note(
            notes,
            f"of {len(files)} ranks {len(different)} saw tokens of their own: ranks with equal counts are of one "
            "tensor-parallel group, and count once",
        )
    elif len(files) > 1:
        note(notes, f"the counts of {len(files)} ranks, each of tokens of its own, are added up")
    total: Cells = {}
    for cells in different:
        for place, count in cells.items():
            total[place] = total.get(place, 0) + count
    return total


def _cells(path: Path, notes: list[str]) -> Cells:
    cells: Cells = {}
    padding = 0
    for line, (layer, expert, count) in _rows(path):
        where = f"{str(path)!r}, line {line}"
        if not 0 <= layer < MOST_LAYERS or not -1 <= expert < MAX_EXPERTS or not 0 <= count < MOST_COUNTED:
            raise TraceError(
                f"{where}: layer {layer}, expert {expert}, count {count}; expected a layer below {MOST_LAYERS}, an "
                f"expert below {MAX_EXPERTS} and a count from 0 on"
            )
        if expert == -1:  # what a batch is filled up with
            padding += count
        elif (layer, expert) in cells:
            raise TraceError(f"{where}: expert {expert} of layer {layer} a second time; expected each once in a file")
        else:
            cells[layer, expert] = count
    if padding:
        note(notes, "choices of expert -1, with which batches are filled up, are left out")
    return cells


def _rows(path: Path) -> Iterator[tuple[int, tuple[int, int, int]]]:
    """Each row's numbers, and its line."""
    where = repr(str(path))
    line = 0
    try:
        if path.stat().st_size > MOST_BYTES:
            raise TraceError(f"{where} has more than {MOST_BYTES >> 20} MiB; expected a row for each expert")
        with path.open(newline="", encoding="utf-8") as file:
            for line, row in enumerate(csv.reader(file), start=1):
                if line == 1 and row == HEADER:
                    continue
                if line > MOST_ROWS:
                    raise TraceError(f"{where} has more than {MOST_ROWS:,} rows; expected one for each expert")
                if line == 1 or len(row) != 3 or not all(NUMBER.fullmatch(value) for value in row):
                    shown = ",".join(row)[:60]
                    raise TraceError(f"{where}, line {line}: {shown!r}; expected {','.join(HEADER)}")
                layer, expert, count = map(int, row)
                yield line, (layer, expert, count)
    except OSError as error:
        raise TraceError(f"cannot read {where}: {reason(error)}; check the path") from None
    except (ValueError, csv.Error) as error:
        raise TraceError(f"{where}, line {line + 1}: {reason(error)}; expected {','.join(HEADER)}") from None
