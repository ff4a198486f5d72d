"""`python main.py` itself: train a run, or score one. Heavy modules are imported when a command really runs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from moe_core.cli.output import Output, progress_on_stderr
from moe_core.errors import RunError, UsageError
from moe_core.program import dashboard_command, program
from moe_core.progress import Progress
from moe_core.words import duration

if TYPE_CHECKING:
    from moe_core.config import Config
    from moe_core.runs.evaluation import Evaluation
    from moe_core.runs.folder import RunFolder
    from moe_core.training.loop import TrainingResult


def train(arguments: argparse.Namespace, output: Output) -> int:
    """Train or resume a run, then score it and write its report. Exit code 128 + signal when one stopped it."""
    from moe_core.runs.folder import RunFolder

    preset = arguments.preset or "default"
    run = RunFolder(preset if arguments.run is None else arguments.run)
    config = _config(run, preset, arguments)
    with progress_on_stderr() as progress:
        from moe_core.training.device import keep_freed_memory
        from moe_core.training.loop import train as train_run

        keep_freed_memory()
        result = train_run(run, config, resume=arguments.resume, progress=progress)
        evaluation = _score(run.name, progress) if result.state == "finished" else None
    _summarise(run, result, evaluation, output)
    output.figures(
        {
            "run": run.name,
            "state": result.state,
            "step": result.step,
            "steps": result.steps,
            "seconds": result.seconds,
            "evaluation": None if evaluation is None else evaluation.to_json(),
        }
    )
    return 128 + result.signal if result.signal is not None else 0


def evaluate(arguments: argparse.Namespace, output: Output) -> int:
    """Score a run on its held-out text; print the figures and write report.md."""
    name = run_to_evaluate(arguments)
    with progress_on_stderr() as progress:
        evaluation = _score(name, progress, arguments.device or "cpu")
    _say_figures(name, evaluation, output)
    output.figures(evaluation.to_json())
    return 0


def _config(run: RunFolder, preset: str, arguments: argparse.Namespace) -> Config:
    """Preset (or, to resume, what the run was started with) < --config < environment < command line."""
    from moe_core.config import load_config, parse_overrides
    from moe_core.runs.folder import RunFolder

    overrides: dict[str, Any] = {}
    if arguments.data is not None:
        overrides["data.path"] = arguments.data
    if arguments.seed is not None:
        overrides |= {"data.seed": arguments.seed, "training.seed": arguments.seed}
    overrides |= parse_overrides(arguments.overrides)
    if arguments.init_from is not None:
        if arguments.resume:
            raise UsageError("--resume continues a run with the weights it has and takes no --init-from; leave it out")
        overrides["training.init_from"] = arguments.init_from
    if arguments.resume:
        return load_config(run.config(), file=arguments.config, overrides=overrides)
    config = load_config(preset, file=arguments.config, overrides=overrides)
    if config.training.init_from is None:
        return config
    # The model is that of the run it starts from; what the user says about it comes on top, and is checked there.
    origin = RunFolder(config.training.init_from, run.root).config()
    base = load_config(preset, environment={}).model_copy(update={"model": origin.model})
    return load_config(base, file=arguments.config, overrides=overrides)


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


def _score(name: str, progress: Progress, device: str = "cpu") -> Evaluation:
    from moe_core.evaluation.evaluate import evaluate_run
    from moe_core.inference.device import resolve_device
    from moe_core.reports.run_report import write_report
    from moe_core.runs.checkpoint import load_run

    loaded = load_run(name, device=resolve_device(device))
    evaluation = evaluate_run(loaded, progress=progress)
    write_report(loaded.run, evaluation)
    return evaluation


def _summarise(run: RunFolder, result: TrainingResult, evaluation: Evaluation | None, output: Output) -> None:
    done = f"{result.step:,} of {result.steps:,} steps, {duration(result.seconds)} of training"
    if evaluation is None:
        output.say(f"Run {run.name} stopped after {done}; what it learned is saved.")
        output.say(f"Continue:  {program()} --run {run.name} --resume")
        return
    output.say(f"Run {run.name} finished: {done}.")
    _say_figures(run.name, evaluation, output)
    output.say(f"Next:      {dashboard_command()}")
    if run.config().model.can_write:
        output.say(f'           {program()} generate --run {run.name} --prompt "The "')
    output.say(f"           {program()} plots --run {run.name} --out out/plots")


def _say_figures(name: str, evaluation: Evaluation, output: Output) -> None:
    from moe_core.reports.run_report import loss_verdict, windows_read
    from moe_core.runs.folder import RunFolder

    run, nats = RunFolder(name), evaluation.validation.nats_per_token
    if nats is None:
        raise RunError(f"the loss of run {name!r} is not finite: its weights are damaged; train it again")
    output.say(f"Unseen:    {loss_verdict(evaluation)}")
    output.say(f"Known:     {nats:.3f} nats a token on held-out documents of known kinds.")
    output.say(f"Windows:   {windows_read(run.config(), evaluation)}")
    output.say(f"Routing:   {evaluation.verdicts.routing}")
    output.say(f"Domains:   {evaluation.verdicts.domains}")
    output.say(f"Report:    {run.path / 'report.md'}")
