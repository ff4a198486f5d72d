"""Benchmark results as Markdown: the whole in docs/BENCHMARKS.md, the rows that have a goal in docs/results.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.results import Record, Result
from bench.suite import BENCHMARKS
from moe_core.errors import DataError
from moe_core.files import replaced

BEGIN = "<!-- benchmarks: written by `python main.py bench` -->"
END = "<!-- end of benchmarks -->"
STATUS_WORDS = {"stretch": "reached, stretch too", "floor": "reached", "short": "**missed**", "": ""}
HEADER = "| what | ours | against | its time | times as fast (middle 80 %) | goal | |\n|---|---|---|---|---|---|---|\n"


def document(records: Sequence[Record]) -> str:
    """docs/BENCHMARKS.md."""
    parts = [
        "# Benchmarks\n\nWritten by `python main.py bench`; the figures, with everything measured, are in "
        "docs/benchmarks/. Both sides of a comparison\ntake turns in one process, which keeps freed memory as training "
        "does, and must agree before they are timed.\nRatios are medians of paired rounds; above 1, ours is faster.\n"
    ]
    for record in records:
        parts.append(f"## {record.benchmark}\n\n{BENCHMARKS[record.benchmark].answers}\n\n{_where_measured(record)}\n")
        parts.append(HEADER + "".join(_table_line(result) for result in record.results))
    measured = {record.benchmark for record in records}
    for name, benchmark in BENCHMARKS.items():
        if benchmark.needs_cuda and name not in measured:
            again = (
                f"Not measured: no CUDA device was at hand. Where there is one: `python main.py bench --only {name}`."
            )
            parts.append(f"## {name}\n\n{benchmark.answers}\n\n{again}\n")
    return "\n".join(parts)


def summary(records: Sequence[Record]) -> str:
    """The rows that have a goal, for docs/results.md."""
    rows = [result for record in records for result in record.results if result.goal is not None]
    if not rows:
        return ""
    counts = {word: sum(row.status == word for row in rows) for word in ("stretch", "floor", "short")}
    shown = [row for record in records for row in _worst_rows([row for row in record.results if row.goal is not None])]
    return (
        f"{_machine(records[0])}.\n\n{HEADER}{''.join(_table_line(row) for row in shown)}\n"
        f"Of {len(rows)} goals {counts['stretch'] + counts['floor']} are reached, {counts['stretch']} of them by the "
        f"stretch; {counts['short']} {'is' if counts['short'] == 1 else 'are'} missed.\n"
    )


def _worst_rows(rows: Sequence[Result]) -> list[Result]:
    """Only the worst of the rows that stand alone and share their unit and goal, such as one row for every page."""
    kinds: dict[object, list[Result]] = {}
    for number, row in enumerate(rows):
        kinds.setdefault(number if row.ratio is not None else (row.unit, row.goal), []).append(row)
    found = []
    for alike in kinds.values():
        goal = alike[0].goal
        assert goal is not None
        measured = [row for row in alike if row.value == row.value] or alike
        worst = (max if goal.at_most else min)(measured, key=lambda row: row.value)
        one = len(alike) == 1
        found.append(worst if one else replace(worst, case=f"{worst.case}: the worst of {len(alike)}", note=""))
    return found


def insert(path: Path, text: str, begin_line: str = BEGIN, end_line: str = END) -> None:
    """Put `text` between two lines of a Markdown file. Raises DataError when it lacks them."""
    content = path.read_text(encoding="utf-8")
    before, begin, rest = content.partition(begin_line)
    _, end, after = rest.partition(end_line)
    if not begin or not end:
        raise DataError(f"{path.name} has no place for this; expected the lines {begin_line!r} and {end_line!r}")
    with replaced(path) as file:
        file.write(f"{before}{begin_line}\n{text}{end_line}{after}".encode())


def figure(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value != value:
        return "not measured"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.6f}"


def _where_measured(record: Record) -> str:
    load = record.environment["load_average_before"]
    return f"{_machine(record)}; load average before {load}, {record.seconds:.0f} s."


def _machine(record: Record) -> str:
    found = record.environment
    accelerator = "" if found["accelerator"] == "none" else f", {found['accelerator']}"
    return (
        f"{record.date[:10]}, {found['processor']}{accelerator}, {found['threads']} threads, {found['instructions']}, "
        f"torch {found['versions']['torch']}, transformers {found['versions']['transformers']}"
    )


def _table_line(result: Result) -> str:
    spread = result.ratio
    return (
        "| "
        + " | ".join(
            [
                result.case + (f" ({result.note})" if result.note else ""),
                f"{figure(result.value)} {result.unit}" if result.value == result.value else "not measured",
                result.against,
                f"{figure(result.other)} {result.unit}" if result.other is not None else "",
                f"{spread.median:.2f} ({spread.low:.2f} to {spread.high:.2f})" if spread is not None else "",
                _goal(result),
                STATUS_WORDS[result.status],
            ]
        )
        + " |\n"
    )


def _goal(result: Result) -> str:
    if result.goal is None:
        return ""
    sign = "at most " if result.goal.at_most else ""
    stretch = "" if result.goal.stretch is None else f"; {figure(result.goal.stretch)}"
    return f"{sign}{figure(result.goal.floor)}{stretch}"
