"""`--evaluate --suite`: its options, and what answers it. Heavy modules are imported inside."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from moe_core.cli.evaluate import run_to_evaluate
from moe_core.cli.options import Parser, whole
from moe_core.cli.output import Output, progress_on_stderr, table
from moe_core.errors import DataError, UsageError
from moe_core.program import program

if TYPE_CHECKING:
    from moe_core.evaluation.tasks import Inputs

QUESTION_TASKS = ("arc", "mmlu", "gsm8k")


def add_suite(parser: Parser) -> None:
    """--suite and what goes with it."""
    group = parser.add_argument_group("evaluation suite (docs/evaluation.md)")
    group.add_argument(
        "--suite", action="store_true", help="with --evaluate: run the benchmarks, each score beside its chance level, "
        "and write checkpoints/<run>/suite.md; --seed N draws other questions and samples",
    )  # fmt: skip
    group.add_argument("--tasks", metavar="A,B", help="only these benchmarks (default: all)")
    text = group.add_mutually_exclusive_group()
    text.add_argument("--text", metavar="TEXT", help="also the perplexity of this text")
    text.add_argument("--text-file", metavar="FILE", help="the same for a file of plain text")
    for name in QUESTION_TASKS:
        group.add_argument(f"--{name}", metavar="FILE.jsonl", help=f"questions of {name.upper()} (needs lm-eval)")
    group.add_argument(
        "--plugin", metavar="FILE.py", action="append", help="Python file that registers a benchmark of your own; it "
        "is executed",
    )  # fmt: skip


def refuse_without_suite(arguments: argparse.Namespace) -> None:
    """Raise UsageError for an option of the suite without it."""
    if arguments.suite and not arguments.evaluate:
        raise UsageError(f"--suite goes with --evaluate: {program()} --evaluate --suite")
    for name in ("tasks", "text", "text_file", *QUESTION_TASKS, "plugin"):
        if getattr(arguments, name) is not None and not arguments.suite:
            raise UsageError(f"--{name.replace('_', '-')} goes with --evaluate --suite; add --suite")


def evaluate_suite(arguments: argparse.Namespace, output: Output) -> int:
    """Run benchmarks on a run; print the scores, write suite.md and suite.json. Exit code 1 when a plugin failed."""
    from moe_core.evaluation.tasks import load_plugin, run_suite, select
    from moe_core.reports.suite_report import score_cells, summary, write_suite

    seed = _seed(arguments.seed)
    for path in arguments.plugin or ():
        load_plugin(path)
    benchmarks = select(None if arguments.tasks is None else _names(arguments.tasks))
    inputs = _inputs(arguments, {one.name for one in benchmarks})
    name = run_to_evaluate(arguments)
    with progress_on_stderr() as progress:
        from moe_core.inference.device import resolve_device
        from moe_core.runs.checkpoint import load_run

        loaded = load_run(name, device=resolve_device(arguments.device or "cpu"))
        result = run_suite(loaded, benchmarks, inputs=inputs, seed=seed, progress=progress)
        path = write_suite(loaded.run, result)
    scored = [[task.name, *score_cells(score)] for task in result.tasks for score in task.scores]
    if scored:
        output.say(table(["task", "score", "value", "95 % interval", "chance or held-out", "verdict"], scored))
    for task in result.tasks:
        if task.not_run:
            output.say(f"{task.name}: not run: {task.not_run}")
    output.say(f"Summary:   {summary(result)}")
    output.say(f"Report:    {path}")
    output.figures(result.to_json())
    return 1 if any(task.failed for task in result.tasks) else 0


def _inputs(arguments: argparse.Namespace, tasks: set[str]) -> Inputs:
    """What the user's options name, read and checked before anything is computed."""
    from moe_core.evaluation.tasks import Inputs
    from moe_core.evaluation.tasks.questions import read_questions

    given = {name: getattr(arguments, name) for name in QUESTION_TASKS if getattr(arguments, name) is not None}
    text_option = "text" if arguments.text is not None else "text-file" if arguments.text_file is not None else None
    for task, option in [*((name, name) for name in given), *([("text", text_option)] if text_option else [])]:
        if task not in tasks:
            raise UsageError(f"--{option} goes with the task {task!r}, which --tasks leaves out; add it to --tasks")
    return Inputs(
        text=_text(arguments) if text_option else None,
        questions={name: read_questions(name, path) for name, path in given.items()},
    )


def _text(arguments: argparse.Namespace) -> str:
    from moe_core.data.rows import read_text
    from moe_core.data.tokenizer import check_encodable

    if arguments.text is not None:
        if not arguments.text:
            raise UsageError("--text is empty; expected at least one character")
        check_encodable(arguments.text)
        return str(arguments.text)
    if not Path(arguments.text_file).is_file():
        raise UsageError(f"no file at --text-file {arguments.text_file!r}; expected plain text")
    try:
        return read_text(Path(arguments.text_file))
    except OSError as error:
        raise DataError(f"cannot read {arguments.text_file!r}: {error.strerror or error}") from None


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError(f"--tasks {text!r} names no task; expected some such as perplexity,arithmetic")
    return names


def _seed(text: str | None) -> int:
    try:
        return whole(0, 2**32 - 1)(text) if text is not None else 0
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--seed {error}") from None
