"""`moescope bench`: how fast Moescope is, against its peers and the machine's limit."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from moe_core.cli.options import Parser, command, finish, whole
from moe_core.cli.output import Output, progress_on_stderr, table
from moe_core.errors import UsageError
from moe_core.words import duration

if TYPE_CHECKING:
    pass


ROOT = Path(__file__).resolve().parents[2]


def parser() -> Parser:
    """Its options."""
    parser = command(
        "bench",
        "Time Moescope against other ways of doing the same work; both take turns. Results go to\n"
        "docs/benchmarks/<date>.json, and the tables in docs/BENCHMARKS.md and docs/results.md are rewritten.\n"
        "Leave the machine alone meanwhile.",
        "bench --only aggregation --json out/bench.json",
    )
    parser.add_argument(
        "--only", metavar="NAME", action="append", default=[], help="only this benchmark; repeatable. An unknown name "
        "lists all",
    )  # fmt: skip
    parser.add_argument(
        "--smoke", action="store_true", help="tiny sizes, in seconds: check that everything still runs and agrees. The "
        "figures mean nothing and are not kept",
    )  # fmt: skip
    parser.add_argument(
        "--threads", metavar="N", type=whole(1, 1_024), help="threads, on as many processors (default: torch's choice)"
    )
    return finish(parser, bench)


def bench(arguments: argparse.Namespace, output: Output) -> int:
    """Run the benchmarks asked for, print their rows and, unless --smoke, write them into docs/."""
    if importlib.util.find_spec("bench") is None:
        raise UsageError(
            "bench needs a checkout: the timings against peers are not part of the installed package; clone the "
            "repository and run `python main.py bench` there"
        )
    import torch

    from bench.results import Record, Result, as_json, newest_records, read_records, write_records
    from bench.suite import BENCHMARKS, Scale, run_benchmark, select
    from bench.tables import STATUS_WORDS, document, figure, insert, summary

    names = select(arguments.only, smoke=arguments.smoke)
    threads = arguments.threads or torch.get_num_threads()
    folder = ROOT / "docs" / "benchmarks"
    if not arguments.smoke:
        newest_records(folder, names)  # a damaged file is told now, not after the measuring

    def ratio(row: Result) -> str:
        return "" if row.ratio is None else f"{row.ratio.median:.2f} ({row.ratio.low:.2f}-{row.ratio.high:.2f})"

    records: list[Record] = []
    for name in names:
        output.say(f"{name}: {BENCHMARKS[name].answers}")
        if missing := BENCHMARKS[name].missing(smoke=arguments.smoke):
            output.say(f"  {missing}\n")
            continue
        with progress_on_stderr() as progress:
            scale = Scale(smoke=True, rounds=2, progress=progress) if arguments.smoke else Scale(progress=progress)
            record = run_benchmark(name, scale, threads)
        records.append(record)
        rows = [
            (row.case, f"{figure(row.value)} {row.unit}", row.against, ratio(row), STATUS_WORDS[row.status], row.note)
            for row in record.results
        ]
        output.say(table(("case", "ours", "against", "times as fast", "goal", ""), rows))
        output.say(f"  {duration(record.seconds)}\n")
        if not arguments.smoke:  # after each one: nothing is lost when a later one is interrupted
            path = folder / f"{record.date[:10]}.json"
            kept = [old for old in (read_records(path) if path.exists() else []) if old.benchmark != name]
            write_records(path, [*kept, record])
    if records and not arguments.smoke:
        newest = newest_records(folder, list(BENCHMARKS))
        (ROOT / "docs" / "BENCHMARKS.md").write_text(document(newest), encoding="utf-8")
        insert(ROOT / "docs" / "results.md", summary(newest))
        output.say(f"written: {folder.relative_to(ROOT)}, docs/BENCHMARKS.md and the table in docs/results.md")
    output.figures([as_json(record) for record in records])
    return 0
