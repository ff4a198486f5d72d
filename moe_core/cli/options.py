"""What commands' options are made of. Nothing heavy is imported, so that --help answers at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from moe_core.cli.output import JSON_TO_STDOUT
from moe_core.errors import UsageError
from moe_core.inference.device import DEVICES, DTYPES
from moe_core.program import program

if TYPE_CHECKING:
    from moe_core.runs.checkpoint import Step
    from moe_core.runs.folder import RunFolder


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong argument raises UsageError (one line) instead of printing the usage and exiting."""

    def __init__(self, prog: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def command(name: str, description: str, *examples: str) -> Parser:
    """The parser of the command `name`; an example is what follows the program's name."""
    lines = (f"  {program()} {example}" for example in examples)
    return Parser(f"{program()} {name}", description, "\n".join(["example:", *lines]))


def finish(parser: Parser, handler: Callable[..., int]) -> Parser:
    """Add --json, and say what answers the command."""
    add_json(parser)
    parser.set_defaults(handler=handler)
    return parser


DTYPE_HELP = "precision of the weights (default auto: as --model was saved; float32 for a run)"


def add_model(parser: Parser, does: str, *, required: bool = True, dtype_help: str = DTYPE_HELP) -> None:
    """--run or --model, and where it computes. `required`: one of the two must be given."""
    which = parser.add_mutually_exclusive_group(required=required)
    which.add_argument("--run", metavar="NAME", help=f"run whose newest checkpoint {does}")
    which.add_argument(
        "--model", metavar="DIR_OR_NAME", help=f"model of the transformers library that {does}: a folder, or a name "
        "that it finds in its cache or on the network (needs requirements-huggingface.txt)",
    )  # fmt: skip
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run the Python code that comes with --model; without it a "
        "model that needs its own code is refused",
    )  # fmt: skip
    add_device(parser)
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help=dtype_help)


def add_step(parser: Parser) -> None:
    """--step"""
    parser.add_argument(
        "--step", metavar="N|best", type=_step, help="with --run: the checkpoint of that step, or of those there are "
        "the one with the lowest loss on validation (default: the newest)",
    )  # fmt: skip


def _step(text: str) -> Step:
    if text == "best":
        return "best"
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is neither a step nor best")
    return int(text)


def add_device(parser: Parser) -> None:
    """--device"""
    parser.add_argument(
        "--device", choices=DEVICES, default="auto", help="where to compute (default auto: cuda where present, else "
        "cpu)",
    )  # fmt: skip


def add_json(parser: Parser) -> None:
    """--json"""
    parser.add_argument(
        "--json",
        nargs="?",
        const=JSON_TO_STDOUT,
        metavar="FILE",
        help="figures as JSON: to FILE, or alone on standard output",
    )


def whole(low: int, high: int) -> Callable[[str], int]:
    """An argparse type: a whole number within bounds."""

    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from {low} to {high}")
        return number

    return convert


def positive(most: float) -> Callable[[str], float]:
    """An argparse type: a number above 0, up to `most`."""

    def convert(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = 0.0
        if not 0 < number <= most:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number above 0 and up to {most:,g}")
        return number

    return convert


def existing_run(name: str) -> RunFolder:
    """The run of that name; refused before torch is imported when there is none."""
    from moe_core.runs.folder import RunFolder

    run = RunFolder(name)
    if not run.exists():
        run.config()  # raises RunError: no run ...
    return run


def output_folder(path: str) -> Path:
    """A folder to write into, refused before any work is done."""
    if not path or "\0" in path or (Path(path).exists() and not Path(path).is_dir()):
        raise UsageError(f"--out {path!r} is not a folder; expected one to write to, e.g. out/figures")
    return Path(path)


def folder_name(path: str, option: str) -> Path:
    """A folder that an option names, whether it is there or not. Raises UsageError naming the option."""
    if not path or "\0" in path:
        raise UsageError(f"{option} {path!r} is not the name of a folder; expected one such as out/checkpoint")
    return Path(path)
