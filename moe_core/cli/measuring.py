"""Options of the commands that measure or count; parser.py has the others. Only the standard library is imported."""

from __future__ import annotations

from moe_core.cli import bench, comparison, presets
from moe_core.cli.options import Parser, command, finish, whole


def presets_parser() -> Parser:
    """`python main.py presets`"""
    parser = command(
        "presets",
        "List the named configurations that --preset trains: parameters, operations for a token, and the memory that\n"
        "training and serving take at each precision. docs/presets.md has the formulas and the numbers' sources.",
        "presets",
        "presets --json presets.json",
    )
    return finish(parser, presets.presets)


def bench_parser() -> Parser:
    """`python main.py bench`"""
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
    return finish(parser, bench.bench)


def compare_dense_parser() -> Parser:
    """`python main.py compare-dense`"""
    parser = command(
        "compare-dense",
        "Is the mixture better than a dense model? Trains the mixture, a dense model of equal active FLOPs and one of\n"
        "equal size on the same tokens, each with the best of three learning rates, scores them on unseen text over\n"
        "several seeds, and times them. About 65 minutes with --workers 2 on two cores. You may stop or kill it at\n"
        "any time; --resume continues.",
        "compare-dense --workers 2",
        "compare-dense --data texts.jsonl --resume",
    )
    _add_comparison(parser, seeds=5)
    return finish(parser, comparison.dense)


def compare_routers_parser() -> Parser:
    """`python main.py compare-routers`"""
    parser = command(
        "compare-routers",
        "Which router? Trains the same model with every kind of router and way of balancing on the same tokens: loss,\n"
        "load, dead experts, domains and speed, seed by seed. About 80 minutes with --workers 2 on two cores. You may\n"
        "stop or kill it at any time; --resume continues.",
        "compare-routers --workers 2",
    )
    _add_comparison(parser, seeds=5)
    return finish(parser, comparison.routers)


def _add_comparison(parser: Parser, *, seeds: int) -> None:
    parser.add_argument("--config", metavar="FILE", help="HOCON file with keys that override the quick preset's")
    parser.add_argument("--data", metavar="PATH", help="your own text, as for training (default: synthetic documents)")
    parser.add_argument(
        "--seeds", metavar="N", type=whole(2, 1_000), default=seeds, help=f"seeds that are scored (default {seeds})"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue an interrupted comparison; finished trainings are kept"
    )
    parser.add_argument(
        "--time-again", action="store_true", help="measure the times of a finished comparison again, as on "
        "a quieter machine",
    )  # fmt: skip
    parser.add_argument(
        "--workers", metavar="W", type=whole(1, 256), default=1, help="trainings side by side, one thread each; "
        "they do not change the losses (default 1)",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="DIR", default="out/comparisons", help="folder of the results, and of the trainings they come "
        "from (default out/comparisons, which the dashboard's Compare page shows)",
    )  # fmt: skip
    parser.add_argument(
        "--smoke", action="store_true", help="a tiny model, in seconds: check that everything still runs"
    )
