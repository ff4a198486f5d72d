"""How much of a trace a result is of, as columns and in words: nothing is sampled without saying so."""

from __future__ import annotations

from typing import Any

from moe_core.routing.trace.trace import AnyRouting
from moe_core.words import count_of


def used(trace: AnyRouting, sample: AnyRouting | None = None, *, value_of_sample: bool = False) -> dict[str, int]:
    """Columns of a result's frame that say what it used.

    tokens, documents: what the value is of; tested_tokens, tested_documents: what its p-value and its null are of, the
    `sample` where there is one; trace_tokens, trace_documents: all there is. With `value_of_sample` the value is of the
    sample too.
    """
    whole = (trace.num_tokens, trace.count_documents())
    tested = whole if sample is None or sample is trace else (sample.num_tokens, sample.count_documents())
    value = tested if value_of_sample else whole
    names = ("tokens", "tested_tokens", "trace_tokens"), ("documents", "tested_documents", "trace_documents")
    return {
        name: number
        for tokens, documents, (T, D) in zip(*names, (value, tested, whole), strict=True)
        for name, number in ((tokens, T), (documents, D))
    }


def extent_of_test(trace: AnyRouting, sample: AnyRouting | None = None) -> dict[str, int]:
    """The columns of `used` without those of the value: for frames whose `tokens` are those of a cell."""
    return {name: number for name, number in used(trace, sample).items() if "_" in name}


def sample_words(row: Any) -> str:
    """ "from 16,384 of 1,200,000 tokens, 17 of 171 documents", of a row with the columns of `used`; "" for all."""
    if not hasattr(row, "tested_tokens") or row.tested_tokens >= row.trace_tokens:
        return ""
    tokens = f"{int(row.tested_tokens):,} of {count_of(int(row.trace_tokens), 'token')}"
    return f"from {tokens}, {int(row.tested_documents):,} of {count_of(int(row.trace_documents), 'document')}"
