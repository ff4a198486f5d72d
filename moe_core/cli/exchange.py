"""`python main.py export` and `python main.py import`: checkpoints of Hugging Face's families."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from moe_core.cli.commands import existing_run
from moe_core.cli.output import Output, check_regular, progress_on_stderr, write_bytes
from moe_core.errors import UsageError
from moe_core.program import program

if TYPE_CHECKING:
    from moe_core.runs.checkpoint import LoadedRun


def export(arguments: argparse.Namespace, output: Output) -> int:
    """Write a run's newest checkpoint as a folder that transformers loads."""
    existing_run(arguments.run)
    target = _folder(arguments.to, "--to")
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
        output.say(f"{documents:,} unseen documents, as --evaluate scores them, in {arguments.unseen}")
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


def import_(arguments: argparse.Namespace, output: Output) -> int:
    """Make a new run of a checkpoint that transformers wrote."""
    source = _folder(arguments.source, "--from")
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


def _folder(path: str, option: str) -> Path:
    if not path or "\0" in path:
        raise UsageError(f"{option} {path!r} is not the name of a folder; expected one such as out/checkpoint")
    return Path(path)


def write_unseen(loaded: LoadedRun, path: Path) -> int:
    """The unseen text that `--evaluate` scores, a document a line, for lm-eval (docs/lm_eval); how many there are."""
    from moe_core.evaluation.evaluate import scored_documents

    documents = scored_documents(loaded, "unseen")
    lines = (json.dumps({"text": one.text, "domain": one.domain, "source": one.source}) + "\n" for one in documents)
    write_bytes(path, "".join(lines).encode())
    return len(documents)
