"""`--evaluate`: a run is scored on its held-out text."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from moe_core.cli.output import Output, progress_on_stderr
from moe_core.errors import RunError, UsageError
from moe_core.program import program
from moe_core.progress import Progress

if TYPE_CHECKING:
    from moe_core.runs.evaluation import Evaluation


def evaluate(arguments: argparse.Namespace, output: Output) -> int:
    """Score a run on its held-out text; print the figures and write report.md."""
    name = run_to_evaluate(arguments)
    with progress_on_stderr() as progress:
        evaluation = score(name, progress, arguments.device or "cpu")
    say_figures(name, evaluation, output)
    output.figures(evaluation.to_json())
    return 0


def run_to_evaluate(arguments: argparse.Namespace) -> str:
    """The run that --run or a preset names, else the one updated last. Raises UsageError when there is none."""
    from moe_core.runs import RunFolder, list_runs

    if arguments.run is not None:
        return RunFolder(arguments.run).name
    if arguments.preset is not None:
        return str(arguments.preset)
    runs = [run for run in list_runs() if run.error is None and run.step > 0]
    if not runs:
        raise UsageError(f"there is no trained run to evaluate; train one with `{program()} --quick`")
    return runs[0].name


def score(name: str, progress: Progress, device: str = "cpu") -> Evaluation:
    from moe_core.evaluation.evaluate import evaluate_run
    from moe_core.inference.device import resolve_device
    from moe_core.reports.run_report import write_report
    from moe_core.runs.checkpoint import load_run

    loaded = load_run(name, device=resolve_device(device))
    evaluation = evaluate_run(loaded, progress=progress)
    write_report(loaded.run, evaluation)
    return evaluation


def say_figures(name: str, evaluation: Evaluation, output: Output) -> None:
    from moe_core.reports.run_report import loss_verdict, windows_read
    from moe_core.runs.folder import RunFolder
    from moe_core.runs.lost_steps import lost_steps

    run, nats = RunFolder(name), evaluation.validation.nats_per_token
    if nats is None:
        raise RunError(f"the loss of run {name!r} is not finite: its weights are damaged; train it again")
    lost = lost_steps(name, run.config(), run.status())
    if lost is not None:
        output.say(f"\nWARNING:   {lost.sentence}\n           This trains {lost.rest}:\n           {lost.command}\n")
    output.say(f"Unseen:    {loss_verdict(evaluation)}")
    output.say(f"Known:     {nats:.3f} nats a token on held-out documents of known kinds.")
    output.say(f"Windows:   {windows_read(run.config(), evaluation)}")
    output.say(f"Routing:   {evaluation.verdicts.routing}")
    output.say(f"Domains:   {evaluation.verdicts.domains}")
    output.say(f"Report:    {run.path / 'report.md'}")
