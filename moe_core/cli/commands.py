"""The commands that look at runs and data; training has its own file. Heavy modules are imported inside."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_core.cli.exits import printable
from moe_core.cli.output import Output, progress_on_stderr, table, write_bytes
from moe_core.errors import UsageError
from moe_core.program import program
from moe_core.words import count_of

if TYPE_CHECKING:
    from moe_core.routing import Intervention
    from moe_core.runs.folder import RunFolder
    from moe_core.runs.listing import RunSummary


def data(arguments: argparse.Namespace, output: Output) -> int:
    """Write the synthetic corpus as JSONL, one file a split, and print its quality gates."""
    from data_gen import SPLITS, generate_corpus
    from data_gen.gates import measure_gates

    folder = output_folder(arguments.out)
    with progress_on_stderr() as progress:
        documents = generate_corpus(arguments.documents, seed=arguments.seed, progress=progress)
        for split in SPLITS:
            lines = (json.dumps(document._asdict()) + "\n" for document in documents if document.split == split)
            write_bytes(folder / f"{split}.jsonl", "".join(lines).encode())
        progress("measuring", 0, 1)
        gates = measure_gates(documents)
    counts = {split: sum(document.split == split for document in documents) for split in SPLITS}
    output.say(f"{_listed(counts)} documents in {folder}")
    rows = [
        [gate.name, gate.domain, f"{gate.value:.4g}", str(gate.limit), "yes" if gate.passed else "NO"] for gate in gates
    ]
    output.say(table(["gate", "domain", "value", "limit", "passed"], rows))
    output.figures({"out": str(folder), "documents": counts, "gates": [asdict(gate) for gate in gates]})
    return 0


def generate(arguments: argparse.Namespace, output: Output) -> int:
    """Continue a prompt: text on stdout as it comes, speed on stderr."""
    if arguments.run is not None:
        existing_run(arguments.run)
    intervention = _intervention(arguments)
    from moe_core.cli.models import load_language_model
    from moe_core.inference.generate import SamplingConfig
    from moe_core.inference.generate import generate as generate_tokens

    sampling = SamplingConfig(
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
    )
    model = load_language_model(arguments)
    tokens: list[dict[str, Any]] = []
    text = ""
    began = time.perf_counter()
    with progress_on_stderr() as progress:
        for token in generate_tokens(model, arguments.prompt, sampling, intervention):
            text += token.text
            tokens.append({"text": model.tokenizer.token_text(token.token_id), "experts": token.experts.tolist()})
            if output.json_only:
                progress("generating", len(tokens), sampling.max_new_tokens)
            else:
                print(printable(token.text), end="", flush=True)
    seconds = time.perf_counter() - began
    if not output.json_only:
        print(flush=True)
    speed = len(tokens) / seconds
    notes = [f"{count_of(len(tokens), 'token')} in {seconds:.1f} s, {speed:.0f} tokens/s", intervention.describe()]
    print("; ".join(filter(None, notes)), file=sys.stderr)
    output.figures(
        {
            "prompt": arguments.prompt,
            "intervention": asdict(intervention),
            "text": text,
            "tokens_per_second": speed,
            "tokens": tokens,
        }
    )
    return 0


def runs(arguments: argparse.Namespace, output: Output) -> int:  # noqa: ARG001 - every handler has this signature
    """List all runs; a broken one is listed with what is broken."""
    from moe_core.runs.listing import list_runs

    found = list_runs()
    if found:
        output.say(
            table(["run", "state", "steps", "unseen", "validation", "updated", ""], [_row(run) for run in found])
        )
        output.say(
            "unseen, validation: nats per token, of all held-out text once the run is scored, of a part until then"
        )
    else:
        output.say(f"No runs yet. Train one:  {program()} --quick")
    output.figures([asdict(run) for run in found])
    return 0


def slim(arguments: argparse.Namespace, output: Output) -> int:
    """Reduce a run to what is needed to look at it and use it."""
    run = existing_run(arguments.run)
    from moe_core.runs.checkpoint import slim_run

    size = slim_run(run, max_bytes=arguments.max_mib * 2**20)
    output.say(f"Run {run.name} now takes {size:,} bytes: bfloat16 weights, no optimizer state. It cannot be resumed.")
    output.figures({"run": run.name, "bytes": size})
    return 0


def _intervention(arguments: argparse.Namespace) -> Intervention:
    from moe_core.routing import Intervention

    if arguments.mode is not None and not arguments.ablate:
        raise UsageError(f"--mode {arguments.mode} says what ablated experts leave behind; add --ablate L:E")
    return Intervention(
        ablate=Intervention.parse_experts(arguments.ablate),
        force=Intervention.parse_experts(arguments.force),
        mode=arguments.mode or "zero",
    )


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


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {split}" for split, count in counts.items())


def _row(run: RunSummary) -> list[str]:
    updated = datetime.fromtimestamp(run.updated_at).strftime("%Y-%m-%d %H:%M") if run.updated_at else "-"
    return [
        run.name,
        run.state,
        f"{run.step:,}/{run.steps:,}" if run.steps else "-",
        "-" if run.unseen_nats is None else f"{run.unseen_nats:.3f}",
        "-" if run.validation_nats is None else f"{run.validation_nats:.3f}",
        updated,
        run.error or "",
    ]
