"""`moescope data synthetic`, also `moescope data --out`: the synthetic documents as files, and their quality."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from moe_core.cli.options import Parser, command, finish, output_folder, whole
from moe_core.cli.output import Output, progress_on_stderr, table, write_bytes


def parser(name: str = "data synthetic", more: str = "") -> Parser:
    """Its options. `name`: that of the command; `more`: what its help says besides."""
    parser = command(
        name,
        "Write the synthetic documents as train.jsonl, validation.jsonl and unseen.jsonl, and measure their quality.",
        "data synthetic --out out/corpus --documents 200 --seed 3",
    )
    parser.epilog = f"{more}{parser.epilog}"
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to write to; created if missing")
    parser.add_argument(
        "--documents", metavar="N", type=whole(10, 1_000_000), default=1000, help="training documents per domain "
        "(default 1000); the held-out splits have a 25th each",
    )  # fmt: skip
    parser.add_argument("--seed", metavar="S", type=whole(0, 2**32 - 1), default=0, help="default 0")
    return finish(parser, synthetic)


def synthetic(arguments: argparse.Namespace, output: Output) -> int:
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
    output.say(f"{_list_counts(counts)} documents in {folder}")
    rows = [
        [gate.name, gate.domain, f"{gate.value:.4g}", str(gate.limit), "yes" if gate.passed else "NO"] for gate in gates
    ]
    output.say(table(["gate", "domain", "value", "limit", "passed"], rows))
    output.figures({"out": str(folder), "documents": counts, "gates": [asdict(gate) for gate in gates]})
    return 0


def _list_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {split}" for split, count in counts.items())
