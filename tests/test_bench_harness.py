"""The bench's own parts: timing in turns, goals, files and tables. What is fast is not tested, only what is true."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest

from bench.results import Goal, Record, Result, compared, newest_records, read_records, write_records
from bench.suite import BENCHMARKS, select
from bench.tables import BEGIN, END, document, figure, insert, summary
from moe_core.errors import DataError, UsageError
from moe_core.experiments.machine import environment
from moe_core.experiments.timing import Spread, Timings, interleave

ROOT = Path(__file__).resolve().parent.parent


def test_sides_take_turns_and_change_their_order_every_round() -> None:
    calls: list[str] = []
    timings = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, min_seconds=0.0)
    # One warm-up and one probing call a side, then a b, b a, a b.
    assert "".join(calls) == "aabb" + "abbaab"
    assert list(timings.seconds.columns) == ["a", "b"]
    assert len(timings.seconds) == 3


def test_a_quick_call_is_repeated_until_it_can_be_timed() -> None:
    calls = 0

    def quick() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.001)

    interleave({"quick": quick}, rounds=1, min_seconds=0.01)
    assert 3 <= calls <= 2 + 10  # warm-up, probe, and at most ten calls of a millisecond or more


def test_ratios_are_taken_within_rounds() -> None:
    # The machine slows down fivefold in the last round: the ratio does not notice.
    timings = Timings(pd.DataFrame({"ours": [1.0, 2.0, 10.0], "theirs": [2.0, 4.0, 20.0]}))
    assert timings.times_faster("ours", "theirs") == Spread(2.0, 2.0, 2.0)
    assert timings.median("ours") == 2.0
    row = compared("case", timings, "ours", "theirs", goal=Goal(1.5, 2.5))
    assert (row.value, row.other, row.unit, row.status) == (2000.0, 4000.0, "ms", "floor")


@pytest.mark.parametrize(
    ("goal", "value", "status"),
    [
        (Goal(1.0, 2.0), 2.0, "stretch"),
        (Goal(1.0, 2.0), 1.0, "floor"),
        (Goal(1.0, 2.0), 0.99, "short"),
        (Goal(0.3, at_most=True), 0.3, "floor"),
        (Goal(0.3, 0.1, at_most=True), 0.1, "stretch"),
        (Goal(0.3, 0.1, at_most=True), 0.31, "short"),
        (Goal(1.0), math.nan, ""),
    ],
)
def test_status_of_a_goal(goal: Goal, value: float, status: str) -> None:
    assert Result("case", value, "s", goal=goal).status == status


def _record(date: str, value: float) -> Record:
    rows = (
        Result("a case", value, "ms", "a peer", 2 * value, Spread(2.0, 1.5, 2.5), Goal(1.0, 3.0), "a note"),
        Result("another", math.nan, "MB", note="not measured: no browser"),
    )
    return Record("aggregation", date, 1.5, asdict(environment(1)), rows)


def test_records_survive_the_file(tmp_path: Path) -> None:
    record = _record("2026-01-02T03:04", 1.0)
    path = tmp_path / "new" / "one.json"
    write_records(path, [record])
    (found,) = read_records(path)
    assert (found.benchmark, found.date, found.environment) == (record.benchmark, record.date, record.environment)
    assert found.results[0] == record.results[0]
    assert math.isnan(found.results[1].value)


def test_the_newest_record_of_a_benchmark_counts(tmp_path: Path) -> None:
    write_records(tmp_path / "2026-01-02.json", [_record("2026-01-02T03:04", 1.0)])
    write_records(tmp_path / "2026-01-03.json", [_record("2026-01-03T03:04", 5.0)])
    (found,) = newest_records(tmp_path, list(BENCHMARKS))
    assert found.results[0].value == 5.0


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text('[{"benchmark": "aggregation"}]')
    with pytest.raises(DataError, match=r"broken\.json"):
        read_records(path)


def test_tables_say_what_was_found(tmp_path: Path) -> None:
    record = _record("2026-01-02T03:04", 1.0)
    text = document([record])
    assert "| a case (a note) | 1 ms | a peer | 2 ms | 2.00 (1.50 to 2.50) | 1; 3 | reached |" in text
    assert "| another (not measured: no browser) | not measured |" in text
    short = summary([record])
    assert "another" not in short
    assert "Of 1 goals 1 are reached, 0 of them by the stretch; 0 are missed." in short
    page = tmp_path / "results.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    insert(page, "new\n")
    assert page.read_text() == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    page.write_text("no markers")
    with pytest.raises(DataError, match=r"results\.md"):
        insert(page, "new\n")


def test_the_page_of_results_has_the_place_for_the_table() -> None:
    text = (ROOT / "docs" / "results.md").read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    assert text.index(BEGIN) < text.index(END)


def test_of_rows_alike_the_summary_shows_the_worst() -> None:
    goal = Goal(2.0, at_most=True)
    pages = [
        Result(page, value, "MB", goal=goal, note="x") for page, value in (("a", 0.5), ("b", 3.0), ("c", math.nan))
    ]
    record = replace(_record("2026-01-02T03:04", 1.0), results=(*pages, Result("memory", 5.0, "MiB", goal=Goal(4.0))))
    short = summary([record])
    assert "| b: the worst of 3 | 3 MB |" in short
    assert "| memory | 5 MiB |" in short
    assert "| a |" not in short
    assert "Of 4 goals 2 are reached" in short


def test_figures_are_short() -> None:
    assert [figure(value) for value in (1234.5, 99.94, 0.12345, 0.0000123, math.nan)] == [
        "1,234",
        "99.9",
        "0.123",
        "0.000012",
        "not measured",
    ]


def test_unknown_benchmarks_are_refused() -> None:
    with pytest.raises(UsageError, match="'nothing'; expected one of moe_layer"):
        select(["nothing"], smoke=False)
    assert select(["aggregation"], smoke=False) == ["aggregation"]
    assert set(select([], smoke=True)) == set(BENCHMARKS)


@pytest.mark.slow
def test_the_smoke_mode_runs_from_the_shell_and_keeps_nothing(tmp_path: Path) -> None:
    """The other benchmarks' smoke runs are called directly, each beside what else is tested of it."""
    kept = {path: path.stat().st_mtime_ns for path in (ROOT / "docs").rglob("*")}
    target = tmp_path / "bench.json"
    names = ["aggregation", "traces", "growth", "startup"]
    only = [part for name in names for part in ("--only", name)]
    done = subprocess.run(
        [sys.executable, "main.py", "bench", "--smoke", "--threads", "1", *only, "--json", str(target)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    records = json.loads(target.read_text())
    assert [record["benchmark"] for record in records] == names
    assert all(row["value"] is not None for record in records for row in record["results"])
    assert "main.py --help" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in (ROOT / "docs").rglob("*")} == kept
