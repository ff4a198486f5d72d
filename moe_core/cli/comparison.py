"""`python main.py compare-dense` and `compare-routers`: trainings held against each other, unattended and resumable."""

from __future__ import annotations

import argparse
import signal
from typing import TYPE_CHECKING, Any

from moe_core.cli.commands import output_folder
from moe_core.cli.output import Output, progress_on_stderr

if TYPE_CHECKING:
    from moe_core.experiments.plan import Kind


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

    plan = make_plan(kind, file=arguments.config, data=arguments.data, seeds=arguments.seeds, smoke=arguments.smoke)
    work, path = out / plan.name, out / f"{plan.name}.json"
    import torch

    from moe_core.experiments.results import build_result, write_result
    from moe_core.experiments.runner import run_trials
    from moe_core.experiments.speed import measure_speed, read_speed
    from moe_core.experiments.tables import result_table
    from moe_core.experiments.trial import TrialStopped
    from moe_core.runs.files import write_atomic
    from moe_core.training.device import keep_freed_memory

    keep_freed_memory()
    resume = arguments.resume or arguments.time_again

    def write(speed: dict[str, Any] | None) -> dict[str, Any]:
        result = build_result(plan, chosen, outcomes, speed)
        write_result(path, result)
        write_atomic(path.with_suffix(".md"), result_table(result).encode())
        return result

    with progress_on_stderr() as progress:
        try:
            chosen, outcomes = run_trials(work, plan, resume=resume, workers=arguments.workers, progress=progress)
        except TrialStopped as stopped:
            output.say(f"Stopped; what is trained is kept in {work}. Continue with the same options and --resume.")
            return 128 + (stopped.signal or signal.SIGTERM)
        speed = None if arguments.time_again else read_speed(work)
        if speed is None:
            write(read_speed(work))  # the losses are not lost where the timing is interrupted, nor older times
            threads = torch.get_num_threads()
            speed = measure_speed(work, plan, chosen, threads=threads, smoke=arguments.smoke, progress=progress)
    result = write(speed)
    output.say(result_table(result))
    output.figures(result)
    output.say(f"Result: {path}; the same as Markdown: {path.with_suffix('.md')}")
    return 0
