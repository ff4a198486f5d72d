"""`moescope import`: a run of a checkpoint of one of Hugging Face's families."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from moe_core.cli.options import Parser, command, finish, folder_name
from moe_core.cli.output import Output, progress_on_stderr
from moe_core.errors import UsageError
from moe_core.program import program

if TYPE_CHECKING:
    pass


def parser() -> Parser:
    """Its options."""
    parser = command(
        "import",
        "Make a run from a checkpoint of Hugging Face transformers whose architecture equals ours (see export). Look\n"
        f"at it, generate with it, or fine-tune it: {program()} --run tuned --init-from NAME --data texts.jsonl",
        "import --from out/demo-hf --run demo-again",
    )
    parser.add_argument(
        "--from", dest="source", metavar="DIR", required=True, help="folder with config.json, safetensors and tokenizer"
    )
    parser.add_argument("--run", metavar="NAME", required=True, help="name of the new run")
    parser.add_argument(
        "--data", metavar="PATH", help="your own text, as for training: the run is scored on its held-out parts and "
        "shown with them (default: synthetic documents)",
    )  # fmt: skip
    return finish(parser, import_)


def import_(arguments: argparse.Namespace, output: Output) -> int:
    """Make a new run of a checkpoint that transformers wrote."""
    source = folder_name(arguments.source, "--from")
    if not source.is_dir():
        raise UsageError(f"--from {arguments.source!r} is not a folder; expected that of a Hugging Face checkpoint")
    from moe_core.exchange.import_ import import_checkpoint
    from moe_core.model.size import total_parameters
    from moe_core.runs.folder import RunFolder

    run = RunFolder(arguments.run)
    with progress_on_stderr() as progress:
        config, family = import_checkpoint(source, run, data=arguments.data, progress=progress)
    parameters = total_parameters(config.model)
    output.say(f"Run {run.name}: {parameters:,} parameters of a {family} checkpoint, with its tokenizer")
    output.say(f'Next:  {program()} generate --run {run.name} --prompt "The "')
    output.say(f"       {program()} --run {run.name}-tuned --init-from {run.name} --data TEXTS.jsonl")
    output.figures(
        {
            "run": run.name,
            "from": str(source),
            "model_type": family,
            "parameters": parameters,
            "model": config.model.model_dump(),
        }
    )
    return 0
