"""`moescope export`: a run as a checkpoint of one of Hugging Face's families."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from moe_core.cli.options import Parser, command, existing_run, finish, folder_name
from moe_core.cli.output import Output, check_regular, write_bytes
from moe_core.words import count_of

if TYPE_CHECKING:
    from moe_core.runs.checkpoint import LoadedRun


def parser() -> Parser:
    """Its options."""
    parser = command(
        "export",
        "Write a run's newest checkpoint for Hugging Face transformers, in the architecture that computes exactly\n"
        "the same: mixtral, qwen3_moe, qwen2_moe, granitemoeshared or glm4_moe.\n"
        "transformers is not needed.",
        "export --run demo --to out/demo-hf",
    )
    parser.add_argument("--run", metavar="NAME", required=True, help="run whose newest checkpoint is exported")
    parser.add_argument("--to", metavar="DIR", required=True, help="folder to write; must be missing or empty")
    parser.add_argument(
        "--unseen", metavar="FILE.jsonl", help="also write the unseen text that --evaluate scores, for lm-eval "
        "(docs/lm_eval)",
    )  # fmt: skip
    return finish(parser, export)


def export(arguments: argparse.Namespace, output: Output) -> int:
    """Write a run's newest checkpoint as a folder that transformers loads."""
    existing_run(arguments.run)
    target = folder_name(arguments.to, "--to")
    if arguments.unseen is not None:
        check_regular(arguments.unseen, "--unseen")
    from moe_core.exchange.export import export_run
    from moe_core.runs.checkpoint import load_run

    loaded = load_run(arguments.run)
    exported = export_run(loaded, target)
    documents = write_unseen(loaded, Path(arguments.unseen)) if arguments.unseen is not None else None
    output.say(
        f"Run {arguments.run}, step {loaded.step:,}, as a {exported.family} checkpoint in {target}: "
        f"{exported.parameters:,} parameters in float32, contexts of {exported.context:,} tokens"
    )
    if documents is not None:
        output.say(f"{count_of(documents, 'unseen document')}, as --evaluate scores them, in {arguments.unseen}")
    output.say(f'Load it:  AutoModelForCausalLM.from_pretrained("{target}")')
    output.figures(
        {
            "run": arguments.run,
            "step": loaded.step,
            "to": str(target),
            "model_type": exported.family,
            "parameters": exported.parameters,
            "context": exported.context,
            "unseen": arguments.unseen,
            "documents": documents,
        }
    )
    return 0


def write_unseen(loaded: LoadedRun, path: Path) -> int:
    """The unseen text that `--evaluate` scores, a document a line, for lm-eval (docs/lm_eval); how many there are."""
    from moe_core.evaluation.evaluate import scored_documents

    documents = scored_documents(loaded, "unseen")
    lines = (json.dumps({"text": one.text, "domain": one.domain, "source": one.source}) + "\n" for one in documents)
    write_bytes(path, "".join(lines).encode())
    return len(documents)
