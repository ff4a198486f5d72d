"""Rows of a moe-trace CSV as numbers, one row for each token and layer, in bounded memory."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from moe_core.errors import TraceError
from moe_core.progress import Progress
from moe_core.routing.recordings.pieces import Integers, reason

BLOCK_BYTES = 4 << 20
LAYOUTS = "layer,expert / phase,token,layer,rank,expert / pos,layer,id0,id1,..."


@dataclass(frozen=True)
class Layout:
    """How one moe-trace program writes its CSV."""

    columns: list[str]
    has_header: bool
    top_k: int
    rows_per_token: int
    """K where every row is one activation, 1 where a row holds all of a token's."""

    @property
    def experts(self) -> list[str]:
        """The columns with expert ids."""
        return [name for name in self.columns if name == "expert" or name.startswith("id")]

    @property
    def mark(self) -> str | None:
        """The column that says where in its text a token stands, in the sense of that program."""
        return next((name for name in ("token", "pos") if name in self.columns), None)

    @property
    def numbers(self) -> list[str]:
        """Every column that is read; all hold whole numbers."""
        return [name for name in ("layer", "token", "pos", "rank") if name in self.columns] + self.experts


@dataclass(frozen=True)
class TokenRows:
    """N rows in the order of the file, each the choices of one token in one layer."""

    layers: Integers
    experts: Integers
    lines: Integers
    """Line of the file where each row begins, counted from 1."""
    marks: Integers | None

    def part(self, begin: int, end: int) -> TokenRows:
        """Rows begin to end - 1."""
        marks = None if self.marks is None else self.marks[begin:end]
        return TokenRows(self.layers[begin:end], self.experts[begin:end], self.lines[begin:end], marks)

    def followed_by(self, other: TokenRows) -> TokenRows:
        """Both, one after the other."""
        marks = None
        if self.marks is not None and other.marks is not None:
            marks = np.concatenate([self.marks, other.marks])
        return TokenRows(
            np.concatenate([self.layers, other.layers]),
            np.concatenate([self.experts, other.experts]),
            np.concatenate([self.lines, other.lines]),
            marks,
        )


def layout_of(path: Path, top_k: int | None) -> Layout:
    """Tell the layout by the first lines. Raises TraceError where it is none, or where top_k must be told."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            first = next(reader, [])
            start = [first, *(row for row, _ in zip(reader, range(4096), strict=False))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{str(path)!r} is no CSV ({reason(error)}); expected {LAYOUTS}") from None
    cells = [cell.strip() for cell in first]
    has_header = bool(cells) and not all(_is_whole(cell) for cell in cells)
    if not has_header and len(cells) >= 3:
        _refuse_other_top_k(path, top_k, len(cells) - 2)
        return Layout(["pos", "layer", *(f"id{i}" for i in range(len(cells) - 2))], False, len(cells) - 2, 1)
    columns = cells if has_header else ["layer", "expert"]
    if len(cells) < 2 or "layer" not in columns or "expert" not in columns:
        raise TraceError(
            f"{str(path)!r}, line 1: {','.join(cells)[:80]!r}; expected {LAYOUTS}, see docs/trace-format.md"
        )
    if "rank" in columns:
        found = _rank_count(start[1:], columns.index("rank"))
        _refuse_other_top_k(path, top_k, found)
        return Layout(columns, has_header, found, found)
    if top_k is None:
        raise TraceError(
            f"{str(path)!r} has one row for each activation; say with --top-k how many a token has in a layer"
        )
    return Layout(columns, has_header, top_k, top_k)


def token_rows(path: Path, layout: Layout, progress: Progress) -> Iterator[TokenRows]:
    """Read the file from the start. Raises TraceError naming line and column."""
    size = path.stat().st_size
    line = 2 if layout.has_header else 1
    held: dict[str, Integers] = {}
    try:
        with path.open("rb") as file:
            for batch in _row_batches(file, layout):
                progress("reading", min(file.tell(), size), size)
                numbers = {name: _column_numbers(path, batch, name, line) for name in layout.numbers}
                if held:
                    numbers = {name: np.concatenate([held[name], numbers[name]]) for name in numbers}
                whole = len(numbers["layer"]) // layout.rows_per_token * layout.rows_per_token
                first = line - (len(held["layer"]) if held else 0)
                line = first + len(numbers["layer"])
                yield _token_rows(path, layout, {name: values[:whole] for name, values in numbers.items()}, first)
                held = {name: values[whole:] for name, values in numbers.items()}
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        _raise_first_fault(path, layout)
        raise TraceError(f"{str(path)!r} is no CSV ({reason(error)}); expected {LAYOUTS}") from None
    if held and len(held["layer"]):
        raise TraceError(
            f"{str(path)!r} ends in line {line - 1} within a token: {len(held['layer'])} of its {layout.top_k} rows "
            "are there; is the file cut, or --top-k wrong?"
        )


def _row_batches(file: object, layout: Layout) -> Iterator[pa.RecordBatch]:
    with pa.csv.open_csv(
        file,
        read_options=pa.csv.ReadOptions(
            column_names=layout.columns, skip_rows=int(layout.has_header), block_size=BLOCK_BYTES, use_threads=False
        ),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(layout.numbers, pa.int64()), include_columns=layout.numbers
        ),
    ) as reader:
        yield from reader


def _column_numbers(path: Path, batch: pa.RecordBatch, name: str, line: int) -> Integers:
    column = batch.column(name)
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise TraceError(f"{str(path)!r}, line {line + row}, column {name!r} is empty; expected a whole number")
    values: Integers = column.to_numpy()
    if name in ("layer", "rank") and values.size and values.min() < 0:
        row = int(np.flatnonzero(values < 0)[0])
        raise TraceError(f"{str(path)!r}, line {line + row}, column {name!r}: {values[row]}; expected 0 or more")
    return values


def _token_rows(path: Path, layout: Layout, numbers: dict[str, Integers], first_line: int) -> TokenRows:
    K, step = layout.top_k, layout.rows_per_token
    lines_N = np.arange(first_line, first_line + len(numbers["layer"]))
    if step == 1:
        experts_NK = np.stack([numbers[name] for name in layout.experts], axis=1)
    else:
        experts_NK = numbers["expert"].reshape(-1, K)
        _check_activations(path, numbers, K, lines_N)
    marks = numbers[layout.mark][::step] if layout.mark else None
    return TokenRows(numbers["layer"][::step], experts_NK, lines_N[::step], marks)


def _check_activations(path: Path, numbers: dict[str, Integers], K: int, lines_N: Integers) -> None:
    """All rows of a token are of one layer and in the order of their ranks."""
    expected = {"layer": np.repeat(numbers["layer"][::K], K)}
    if "rank" in numbers:
        expected["rank"] = np.tile(np.arange(K), len(numbers["layer"]) // K)
    for name, values in expected.items():
        wrong = numbers[name] != values
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise TraceError(
                f"{str(path)!r}, line {lines_N[row]}, column {name!r}: {numbers[name][row]}; expected {values[row]}, "
                f"for a token has {K} rows (is the file cut, or --top-k wrong?)"
            )


def _raise_first_fault(path: Path, layout: Layout) -> None:
    """Arrow says that a cell is no number, not where; a slower reading finds it."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            if (number == 1 and layout.has_header) or not row:
                continue
            if len(row) != len(layout.columns):
                raise TraceError(
                    f"{str(path)!r}, line {number} has {len(row)} columns; expected {len(layout.columns)}: "
                    f"{','.join(layout.columns)}"
                )
            for name, cell in zip(layout.columns, row, strict=True):
                if name in layout.numbers and not _is_whole(cell.strip()):
                    raise TraceError(
                        f"{str(path)!r}, line {number}, column {name!r}: {cell[:40]!r}; expected a whole number"
                    )


def _is_whole(cell: str) -> bool:
    return cell.removeprefix("-").isascii() and cell.removeprefix("-").isdigit()


def _rank_count(rows: list[list[str]], column: int) -> int:
    """K: how far the ranks count at the beginning; 1 where there are no rows."""
    ranks = [row[column].strip() for row in rows if len(row) > column]
    return max(1, next((number for number, rank in enumerate(ranks) if rank != str(number)), len(ranks)))


def _refuse_other_top_k(path: Path, top_k: int | None, found: int) -> None:
    if top_k is not None and top_k != found:
        raise TraceError(f"{str(path)!r} has {found} experts for a token and layer, --top-k says {top_k}; leave it out")
