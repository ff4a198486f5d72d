"""`moescope compare-dense` and `compare-routers`: trainings held against each other, unattended and resumable."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING

from moe_core.cli.options import Parser, command, finish, output_folder, whole
from moe_core.cli.output import Output, progress_on_stderr

if TYPE_CHECKING:
    from moe_core.experiments.comparison_result import ComparisonResult, Kind
    from moe_core.experiments.speed_result import SpeedResult


def dense_parser() -> Parser:
    """Of compare-dense."""
    parser = command(
        "compare-dense",
        "Is the mixture better than a dense model? Trains the mixture, a dense model of equal active FLOPs and one of\n"
        "equal size on the same tokens, each with the best of three learning rates, chosen on documents that are not\n"
        "scored. Scores them on held-out and on unseen text over several seeds, does it again with four times the\n"
        "tokens, and times them. About two hours with --workers 2 on two cores, one with --longer-seeds 0. You may\n"
        "stop or kill it at any time; --resume continues.",
        "compare-dense --workers 2",
        "compare-dense --data texts.jsonl --resume",
    )
    _add_comparison(parser, seeds=5)
    parser.add_argument(
        "--longer-seeds", metavar="N", type=whole(0, 1_000), default=2, help="seeds that are scored after four times "
        "the tokens as well, to show a trend; 0 leaves that out (default 2)",
    )  # fmt: skip
    return finish(parser, dense)


def routers_parser() -> Parser:
    """Of compare-routers."""
    parser = command(
        "compare-routers",
        "Which router? Trains the same model with every kind of router and way of balancing on the same tokens: loss,\n"
        "load, dead experts, domains and speed, seed by seed. About 80 minutes with --workers 2 on two cores. You may\n"
        "stop or kill it at any time; --resume continues.",
        "compare-routers --workers 2",
    )
    _add_comparison(parser, seeds=5)
    return finish(parser, routers)


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


def dense(arguments: argparse.Namespace, output: Output) -> int:
    """The mixture against two dense models."""
    return _compare("dense", arguments, output)


def routers(arguments: argparse.Namespace, output: Output) -> int:
    """The routers and ways of balancing against each other."""
    return _compare("routers", arguments, output)


def _compare(kind: Kind, arguments: argparse.Namespace, output: Output) -> int:
    """Train and score what is missing, time it, write the result and its table. 128 + signal when one stopped it."""
    out = output_folder(arguments.out)
    from moe_core.experiments.plan import make_plan

    plan = make_plan(
        kind, file=arguments.config, data=arguments.data, seeds=arguments.seeds, smoke=arguments.smoke,
        longer_seeds=arguments.longer_seeds if kind == "dense" else 0,
    )  # fmt: skip
    work, path = out / plan.name, out / f"{plan.name}.json"
    import torch

    from moe_core.experiments.results import build_result, write_result
    from moe_core.experiments.runner import Outcomes, run_trials, stored_plan
    from moe_core.experiments.speed import measure_speed, read_speed
    from moe_core.experiments.trial import TrialStopped
    from moe_core.reports.comparison_report import result_table
    from moe_core.runs.files import write_atomic
    from moe_core.training.repeatability import keep_freed_memory

    keep_freed_memory()
    resume = arguments.resume or arguments.time_again
    if resume:
        plan = plan.as_begun(stored_plan(work))

    def write(chosen: Mapping[str, float], outcomes: Outcomes, speed: SpeedResult | None) -> ComparisonResult:
        result = build_result(plan, chosen, outcomes, speed)
        write_result(path, result)
        write_atomic(path.with_suffix(".md"), result_table(result).encode())
        return result

    def keep(chosen: Mapping[str, float], outcomes: Outcomes) -> None:
        write(chosen, outcomes, read_speed(work))

    with progress_on_stderr() as progress:
        try:
            chosen, outcomes = run_trials(
                work, plan, resume=resume, workers=arguments.workers, progress=progress,
                budget_done=keep,
            )  # fmt: skip
        except TrialStopped as stopped:
            output.say(f"Stopped; what is trained is kept in {work}. Continue with the same options and --resume.")
            return 128 + (stopped.signal or signal.SIGTERM)
        speed = None if arguments.time_again else read_speed(work)
        if speed is None:
            keep(chosen, outcomes)  # the losses are not lost where the timing is interrupted, nor older times
            threads = torch.get_num_threads()
            speed = measure_speed(work, plan, chosen, threads=threads, smoke=arguments.smoke, progress=progress)
    result = write(chosen, outcomes, speed)
    output.say(result_table(result))
    output.figures(result.to_json())
    output.say(f"Result: {path}; the same as Markdown: {path.with_suffix('.md')}")
    return 0
