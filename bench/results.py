"""Results of a benchmark: one row per comparison, kept as JSON with the machine that it was measured on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moe_core.errors import DataError
from moe_core.experiments.timing import Spread, Timings
from moe_core.files import replaced
from moe_core.json_values import json_safe


@dataclass(frozen=True)
class Goal:
    """The goal of a figure; `at_most`: smaller is better."""

    floor: float
    stretch: float | None = None
    at_most: bool = False

    def status(self, figure: float) -> str:
        """ "stretch", "floor" or "short"."""
        for word, bound in (("stretch", self.stretch), ("floor", self.floor)):
            if bound is not None and (figure <= bound if self.at_most else figure >= bound):
                return word
        return "short"


@dataclass(frozen=True)
class Result:
    """One row: a value in its unit and, if measured against another way, by how much that is slower."""

    case: str
    """The task and its size: "prefill 8 x 256 tokens, 16 experts"."""
    value: float
    """The median of ours, in `unit`; NaN when not measured, `note` then says why."""
    unit: str
    against: str = ""
    """The other way of doing the same work; empty for a figure that stands alone."""
    other: float | None = None
    """The other's median, in `unit`."""
    ratio: Spread | None = None
    """How many times as fast as the other ours is, round by round; above 1 = ours is faster."""
    goal: Goal | None = None
    """Holds for the median ratio where there is one, else for the value."""
    note: str = ""

    @property
    def status(self) -> str:
        """ "stretch", "floor" or "short" of its goal; empty without a goal, or if not measured."""
        figure = self.ratio.median if self.ratio is not None else self.value
        return "" if self.goal is None or figure != figure else self.goal.status(figure)


def compared(
    case: str, timings: Timings, ours: str, against: str, *, goal: Goal | None = None, note: str = ""
) -> Result:
    """The row for one side against another, in milliseconds."""
    return Result(
        case,
        timings.median(ours) * 1000,
        "ms",
        against,
        timings.median(against) * 1000,
        timings.times_faster(ours, against),
        goal,
        note,
    )


@dataclass(frozen=True)
class Record:
    """All rows of one benchmark, when and where they were measured."""

    benchmark: str
    date: str
    """ISO, to the minute."""
    seconds: float
    """How long the benchmark took."""
    environment: Mapping[str, Any]
    results: tuple[Result, ...]


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Keep records as JSON, whole or not at all; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps([as_json(record) for record in records], indent=1, allow_nan=False) + "\n"
    with replaced(path) as file:
        file.write(content.encode())


def as_json(record: Record) -> dict[str, Any]:
    """What `read_records` reads; a value that was not measured is null."""
    found: dict[str, Any] = json_safe({**asdict(record), "results": [asdict(row) for row in record.results]})
    for row, result in zip(found["results"], record.results, strict=True):
        row["status"] = result.status
    return found


def read_records(path: Path) -> list[Record]:
    """Undo `write_records`. Raises DataError when the file is something else."""
    try:
        return [_record(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{str(path)!r} does not hold benchmark results ({error}); run `python main.py bench` again"
        ) from None


def newest_records(folder: Path, order: Sequence[str]) -> list[Record]:
    """The last record of each benchmark over all files of a folder, in the given order; unknown ones are left out."""
    newest: dict[str, Record] = {}
    for path in sorted(folder.glob("*.json")):
        for record in read_records(path):
            if record.benchmark not in newest or record.date >= newest[record.benchmark].date:
                newest[record.benchmark] = record
    return [newest[name] for name in order if name in newest]


def _record(entry: Mapping[str, Any]) -> Record:
    rows = []
    for row in entry["results"]:
        fields = {key: value for key, value in row.items() if key != "status"}
        fields["value"] = float("nan") if fields["value"] is None else fields["value"]
        fields["ratio"] = None if fields["ratio"] is None else Spread(**fields["ratio"])
        fields["goal"] = None if fields["goal"] is None else Goal(**fields["goal"])
        rows.append(Result(**fields))
    return Record(entry["benchmark"], entry["date"], entry["seconds"], entry["environment"], tuple(rows))
