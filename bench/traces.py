"""A trace from end to end: text through a small model into a file, and the file into every table and verdict.

Both halves are the commands a user types, each in a process of its own: `main.py trace`, and `main.py plots` with
`--format csv`, which measures everything and draws nothing.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from bench.made_traces import LARGE_MODEL, Size, trace_parts
from bench.processes import run_python
from bench.results import Goal, Result
from bench.suite import Scale
from data_gen import DOMAINS, Row, generate_corpus
from moe_core.routing.trace.parquet import TraceWriter
from moe_core.routing.trace.trace import RoutingTrace

RUN = "demo"
TOKENS, SMOKE_TOKENS = 1_000_000, 2_000
REFERENCE_BYTES = 27.0
"""A token of 4 layers, top-2, with uint8 experts and float16 weights. Ours keeps float32 weights to the bit, and where
each token stands: document, source, position, domain, the model's guess."""
TOKENS_PER_DOCUMENT = 612
"""About as many as our text has."""


MADE, SMOKE_MADE = (Size(tokens=TOKENS, documents=2_000), replace(LARGE_MODEL, tokens=24_000)), (Size(tokens=2_000),)
"""Traces that are written and read alone: a small model's, and one as wide as large ones are."""


def run(scale: Scale) -> list[Result]:
    """Rows for tracing, for the file and for analysing it."""
    return [*_from_end_to_end(scale), *written_and_read(SMOKE_MADE if scale.smoke else MADE, scale)]


def _from_end_to_end(scale: Scale) -> list[Result]:
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


def written_and_read(sizes: tuple[Size, ...], scale: Scale) -> list[Result]:
    """Seconds of writing, then of reading, a million tokens that are in memory: medians over the rounds."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.parquet"
        for size in sizes:
            parts, seconds = list(trace_parts(size, np.random.default_rng(0))), list[tuple[float, float]]()
            for number in range(scale.rounds):
                scale.progress("writing and reading", number, scale.rounds)
                began = time.perf_counter()
                with TraceWriter(path) as writer:
                    for part in parts:
                        writer.write(part)
                written = time.perf_counter()
                for _ in RoutingTrace.open(path).parts():
                    pass
                seconds.append((written - began, time.perf_counter() - written))
            what = f"{size.tokens:,} tokens x {size.layers} layers x top-{size.top_k} of {size.experts}"
            note = f"{path.stat().st_size / size.tokens:,.0f} bytes a token"
            for name, values in zip(("writing", "reading part by part"), np.transpose(seconds), strict=True):
                low, median, high = np.quantile(values, (0.1, 0.5, 0.9)) * 1e6 / size.tokens
                said = f"middle 80 %: {low:.2f} to {high:.2f} s; {note}"
                rows.append(Result(f"{name} alone, {what}, for a million tokens", float(median), "s", note=said))
    return rows


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
