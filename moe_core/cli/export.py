"""`moescope export`: a run as a checkpoint of one of Hugging Face's families, or as a file for llama.cpp."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moe_core.cli.options import Parser, add_step, command, existing_run, finish, folder_name
from moe_core.cli.output import Output, check_regular, write_bytes
from moe_core.errors import UsageError
from moe_core.words import count_of

if TYPE_CHECKING:
    from moe_core.runs.checkpoint import LoadedRun


def parser() -> Parser:
    """Its options."""
    parser = command(
        "export",
        "Write a run's newest checkpoint for Hugging Face transformers, in the architecture that computes exactly\n"
        "the same: mixtral, qwen3_moe, qwen2_moe, granitemoeshared or glm4_moe. transformers is not needed.\n"
        "With --format gguf it becomes one file for llama.cpp (needs requirements-low-precision.txt).",
        "export --run demo --to out/demo-hf",
        "export --run demo --to out/demo.gguf --format gguf",
        "export --run demo --to out/demo-q8.gguf --format gguf --weights q8_0",
    )
    parser.add_argument("--run", metavar="NAME", required=True, help="run whose newest checkpoint is exported")
    add_step(parser)
    parser.add_argument(
        "--to", metavar="PATH", required=True, help="folder to write, missing or empty; with --format gguf a file that "
        "is not there yet",
    )  # fmt: skip
    parser.add_argument(
        "--format", choices=("huggingface", "gguf"), default="huggingface", help="huggingface: a folder for "
        "transformers, vLLM and lm-eval (default); gguf: a file for llama.cpp",
    )  # fmt: skip
    parser.add_argument(
        "--weights", choices=("f32", "q8_0"), help="with --format gguf: as they are (default f32), or at 8 bits, a "
        "scale for each 32",
    )  # fmt: skip
    parser.add_argument(
        "--unseen", metavar="FILE.jsonl", help="also write the unseen text that --evaluate scores, for lm-eval "
        "(docs/lm_eval)",
    )  # fmt: skip
    return finish(parser, export)


def export(arguments: argparse.Namespace, output: Output) -> int:
    """Write a run's newest checkpoint as a folder that transformers loads."""
    existing_run(arguments.run)
    target = folder_name(arguments.to, "--to")
    if arguments.weights is not None and arguments.format != "gguf":
        raise UsageError(f"--weights {arguments.weights} needs --format gguf; the other format holds float32")
    if arguments.unseen is not None:
        check_regular(arguments.unseen, "--unseen")
    from moe_core.runs.checkpoint import load_run

    if arguments.format == "gguf":
        from moe_core.exchange.gguf_export import check_gguf

        check_gguf()
    loaded = load_run(arguments.run, step=arguments.step)
    write = write_gguf if arguments.format == "gguf" else write_checkpoint
    written = write(loaded, target, arguments, output)
    documents = write_unseen(loaded, Path(arguments.unseen)) if arguments.unseen is not None else None
    if documents is not None:
        output.say(f"{count_of(documents, 'unseen document')}, as --evaluate scores them, in {arguments.unseen}")
    output.say(written.next_step)
    output.figures(
        {
            "run": arguments.run,
            "step": loaded.step,
            "to": str(target),
            "format": arguments.format,
            **written.figures,
            "unseen": arguments.unseen,
            "documents": documents,
        }
    )
    return 0


@dataclass(frozen=True)
class Written:
    """What is said of an export beyond its run and its path."""

    figures: Mapping[str, str | int]
    next_step: str


def write_checkpoint(loaded: LoadedRun, target: Path, arguments: argparse.Namespace, output: Output) -> Written:
    """A folder that transformers loads."""
    from moe_core.exchange.export import export_run

    exported = export_run(loaded, target)
    output.say(
        f"Run {arguments.run}, step {loaded.step:,}, as a {exported.family} checkpoint in {target}: "
        f"{exported.parameters:,} parameters in float32, contexts of {exported.context:,} tokens"
    )
    return Written(
        {"model_type": exported.family, "parameters": exported.parameters, "context": exported.context},
        f'Load it:  AutoModelForCausalLM.from_pretrained("{target}")',
    )


def write_gguf(loaded: LoadedRun, target: Path, arguments: argparse.Namespace, output: Output) -> Written:
    """A file that llama.cpp loads."""
    from moe_core.exchange.gguf_export import export_gguf

    exported = export_gguf(loaded, target, arguments.weights or "f32")
    output.say(
        f"Run {arguments.run}, step {loaded.step:,}, for llama.cpp's {exported.architecture} in {target}: "
        f"{exported.parameters:,} parameters in {exported.weights}, {exported.bytes / 1e6:,.1f} MB, contexts of "
        f"{exported.context:,} tokens"
    )
    if exported.left_exact:
        output.say(
            f"{count_of(exported.left_exact, 'tensor')} whose rows are no multiple of 32 numbers stay in float32"
        )
    return Written(
        {
            "model_type": exported.family,
            "architecture": exported.architecture,
            "weights": exported.weights,
            "parameters": exported.parameters,
            "bytes": exported.bytes,
            "left_exact": exported.left_exact,
            "context": exported.context,
        },
        f'Load it:  llama-cli -m {target} --temp 0 -no-cnv -p "The "',
    )


def write_unseen(loaded: LoadedRun, path: Path) -> int:
    """The unseen text that `--evaluate` scores, a document a line, for lm-eval (docs/lm_eval); how many there are."""
    from moe_core.evaluation.evaluate import scored_documents

    documents = scored_documents(loaded, "unseen")
    lines = (json.dumps({"text": one.text, "domain": one.domain, "source": one.source}) + "\n" for one in documents)
    write_bytes(path, "".join(lines).encode())
    return len(documents)
