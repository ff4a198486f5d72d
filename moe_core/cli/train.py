"""`moescope` without a command: train a run, or with --evaluate score one."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from moe_core import __version__
from moe_core.cli import suite
from moe_core.cli.evaluate import evaluate, say_figures, score
from moe_core.cli.options import Parser, add_json
from moe_core.cli.output import Output, progress_on_stderr
from moe_core.cli.profile import Profiles, add_profile, given_profile_options
from moe_core.config.presets import PRESETS
from moe_core.errors import UsageError
from moe_core.inference.device import DEVICES
from moe_core.program import dashboard_command, program
from moe_core.words import duration

if TYPE_CHECKING:
    from moe_core.config import Config
    from moe_core.runs.evaluation import Evaluation
    from moe_core.runs.folder import RunFolder
    from moe_core.training.loop import TrainingResult


DESCRIPTION = """\
Train a Mixture-of-Experts language model, then score it on unseen text and write checkpoints/<run>/report.md.
Without options: the default model on synthetic text (meant for 30 minutes on two cores); --quick: at most 3 minutes."""


EXAMPLES = (
    "--quick",
    "--quick --run mine --data texts.jsonl --seed 1",
    "--run wide --model.num_experts 32 --training.steps 5000",
    "--run wide --resume",
    "--preset blues --training.steps 200",
    "--quick --run tuned --init-from wide --data texts.jsonl",
    "--evaluate --run wide --json figures.json",
    "--evaluate --suite --run wide",
)


def choose_handler(parsed: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Decide who answers, and refuse options that do not go together. Raises UsageError.

    `overrides`: what the parser did not know, the configuration keys.
    """
    parsed.overrides = overrides
    suite.refuse_without_suite(parsed)
    parsed.handler = train
    if parsed.evaluate:
        parsed.handler = suite.evaluate_suite if parsed.suite else evaluate
        _refuse_training_options(parsed)
    elif parsed.device is not None:
        raise UsageError(f"--device {parsed.device} goes with --evaluate; to train there, --training.device")


def parser(commands_text: str) -> Parser:
    """Its options; `commands_text` lists the commands under them."""
    epilog = "\n".join([commands_text, *(f"  {program()} {example}" for example in EXAMPLES)])
    parser = Parser(program(), DESCRIPTION, epilog)
    parser.add_argument("--version", action="version", version=f"moescope {__version__}")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--preset", metavar="NAME", choices=PRESETS, help=f"which model and training: {', '.join(PRESETS)} (default: "
        f"default); `{program()} presets` shows what each one is and needs",
    )  # fmt: skip
    size.add_argument(
        "--quick", dest="preset", action="store_const", const="quick", help="the same as --preset quick: a smaller "
        "model, trained in at most 3 minutes",
    )  # fmt: skip
    parser.add_argument(
        "--run", metavar="NAME", help="name of the run (default: that of the preset; with --evaluate the run updated "
        "last)",
    )  # fmt: skip
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="your own text: .jsonl, .parquet, .csv, .txt, a folder of one folder a domain, or one of data prepare",
    )
    parser.add_argument(
        "--seed", metavar="N", help="seed of the data, its split, the weights and the order of training"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue a run that was stopped, with the configuration it has"
    )
    parser.add_argument(
        "--init-from", metavar="NAME", help="fine-tune: a new run that starts from the weights and the tokenizer of "
        "run NAME; lower --training.learning_rate and --training.muon_learning_rate keep more of what it knows",
    )  # fmt: skip
    parser.add_argument(
        "--config", metavar="FILE", help="HOCON file with configuration keys, ours or those of moellama's config.hocon"
    )
    parser.add_argument("--evaluate", action="store_true", help="score a trained run instead of training one")
    parser.add_argument(
        "--device", choices=DEVICES, help="with --evaluate: where to compute (default cpu; auto = cuda where present); "
        "to train: --training.device",
    )  # fmt: skip
    add_profile(parser)
    add_json(parser)
    suite.add_suite(parser)
    return parser


def _refuse_training_options(parsed: argparse.Namespace) -> None:
    given = {
        "--resume": parsed.resume,
        "--init-from": parsed.init_from is not None,
        "--data": parsed.data is not None,
        "--seed": parsed.seed is not None and not parsed.suite,
        "--config": parsed.config is not None,
        "--section.key": bool(parsed.overrides),
        **given_profile_options(parsed),
    }
    for option, is_given in given.items():
        if is_given:
            raise UsageError(f"--evaluate scores a trained run as it is and takes no {option}; leave it out")


def train(arguments: argparse.Namespace, output: Output) -> int:
    """Train or resume a run, then score it and write its report. Exit code 128 + signal when one stopped it."""
    from moe_core.runs.folder import RunFolder

    given_profile_options(arguments)  # refuses those that do not go together
    preset = arguments.preset or "default"
    run = RunFolder(preset if arguments.run is None else arguments.run)
    config = _config(run, preset, arguments, output.say)
    with progress_on_stderr() as progress:
        from moe_core.training.loop import train as train_run
        from moe_core.training.parallel.mesh import is_first_process
        from moe_core.training.repeatability import keep_freed_memory

        keep_freed_memory()
        profiles = Profiles(arguments, output)
        result = train_run(run, config, resume=arguments.resume, progress=progress, step=profiles.step)
        if not is_first_process():
            return 128 + result.signal if result.signal is not None else 0
        evaluation = None
        if result.state == "finished":
            with run.lock():  # whoever looks sees that its figures are not the last ones yet
                evaluation = score(run.name, progress)
    profiled = profiles.finish()
    _summarise(run, result, evaluation, output)
    output.figures(
        {
            "run": run.name,
            "state": result.state,
            "step": result.step,
            "steps": result.steps,
            "asked_steps": run.config().training.steps,  # those of training.epochs are known with the text
            "seconds": result.seconds,
            "evaluation": None if evaluation is None else evaluation.to_json(),
            **profiled,
        }
    )
    return 128 + result.signal if result.signal is not None else 0


def _config(run: RunFolder, preset: str, arguments: argparse.Namespace, say: Callable[[str], None]) -> Config:
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
        return load_config(run.config(), file=arguments.config, overrides=overrides, say=say)
    config = load_config(preset, file=arguments.config, overrides=overrides, say=say)
    if config.training.init_from is None:
        return config
    # The model is that of the run it starts from; what the user says about it comes on top, and is checked there.
    origin = RunFolder(config.training.init_from, run.root).config()
    base = load_config(preset, environment={}).model_copy(update={"model": origin.model})
    return load_config(base, file=arguments.config, overrides=overrides, say=say)


def _summarise(run: RunFolder, result: TrainingResult, evaluation: Evaluation | None, output: Output) -> None:
    done = f"{result.step:,} of {result.steps:,} steps, {duration(result.seconds)} of training"
    if evaluation is None:
        output.say(f"Run {run.name} stopped after {done}; what it learned is saved.")
        output.say(f"Continue:  {program()} --run {run.name} --resume")
        return
    early = " It stopped early: its loss on validation no longer fell." if result.step < result.steps else ""
    output.say(f"Run {run.name} finished: {done}.{early}")
    say_figures(run.name, evaluation, output)
    output.say(f"Next:      {dashboard_command()}")
    if run.config().model.can_write:
        output.say(f'           {program()} generate --run {run.name} --prompt "The "')
    output.say(f"           {program()} plots --run {run.name} --out out/plots")
