"""A trace from end to end: text through a small model into a file, and the file into every table and verdict.

Both halves are the commands a user types, each in a process of its own: `main.py trace`, and `main.py plots` with
`--format csv`, which measures everything and draws nothing.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

from bench.processes import run_python
from bench.results import Goal, Result
from bench.suite import Scale
from data_gen import DOMAINS, Row, generate_corpus
from moe_core.routing.trace.trace import RoutingTrace

RUN = "demo"
TOKENS, SMOKE_TOKENS = 1_000_000, 2_000
REFERENCE_BYTES = 27.0
"""A token of 4 layers, top-2, with uint8 experts and float16 weights. Ours keeps float32 weights to the bit, and where
each token stands: document, source, position, domain, the model's guess."""
TOKENS_PER_DOCUMENT = 612
"""About as many as our text has."""


def run(scale: Scale) -> list[Result]:
    """Rows for tracing, for the file and for analysing it."""
    wanted = SMOKE_TOKENS if scale.smoke else TOKENS
    with tempfile.TemporaryDirectory() as folder:
        text, path = Path(folder) / "text.jsonl", Path(folder) / "trace.parquet"
        scale.progress("writing text", 0, 3)
        _write(text, documents(wanted))
        scale.progress("tracing", 1, 3)
        traced = run_python(["main.py", "trace", "--run", RUN, "--data", str(text), "--out", str(path)])
        trace = RoutingTrace.open(path)
        scale.progress("analysing", 2, 3)
        analysed = run_python(["main.py", "plots", "--trace", str(path), "--out", f"{folder}/out", "--format", "csv"])
        tokens, size, plain = trace.num_tokens, path.stat().st_size, bytes_without_logits(path)
    what = f"{tokens:,} tokens x {trace.num_layers} layers x top-{trace.top_k} of {trace.num_experts}"
    alone = "one run; starting Python and loading the model included"
    return [
        Result(f"text to stored trace, {what}", tokens / traced.seconds, "tokens/s", note=alone),
        Result("its peak memory", traced.peak_mib, "MiB"),
        Result("stored trace with the routers' logits", size / tokens, "bytes/token"),
        Result(
            "stored trace without them",
            plain / tokens,
            "bytes/token",
            goal=Goal(1.25 * REFERENCE_BYTES, REFERENCE_BYTES, at_most=True),
            note="float32 weights kept exactly; 27 with float16 weights and nothing else",
        ),
        Result("stored trace to every measure and null", tokens / analysed.seconds, "tokens/s", note=alone),
        Result("its peak memory", analysed.peak_mib, "MiB"),
    ]


def documents(tokens: int) -> list[Row]:
    """Our own text in four domains, about as many tokens as asked for."""
    each = max(1, tokens // (TOKENS_PER_DOCUMENT * len(DOMAINS)))
    found: list[Row] = generate_corpus(each, splits=["train"])
    return found


def bytes_without_logits(path: Path) -> int:
    """Bytes on disk of the columns of a stored trace, those of logits left out."""
    stored = pq.ParquetFile(path).metadata
    columns = [
        stored.row_group(group).column(place)
        for group in range(stored.num_row_groups)
        for place in range(stored.num_columns)
    ]
    return sum(int(one.total_compressed_size) for one in columns if "_logits" not in one.path_in_schema)


def _write(path: Path, found: list[Row]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for document in found:
            line = {"text": document.text, "domain": document.domain, "source": document.source}
            file.write(json.dumps(line) + "\n")
