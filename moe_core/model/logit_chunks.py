"""How many rows of logits the loss makes at a time. No torch: the memory formulas use it, too."""

from __future__ import annotations

CHUNK_NUMBERS = 2**26
"""Logits that the loss makes at a time, at most: 256 MiB of float32, and rows enough for products at full speed. Fewer
are made all at once, which is as fast or faster on a processor (decision 0041)."""


def chunk_rows(rows: int, vocab_size: int) -> int | None:
    """Rows of a chunk of [rows, vocab_size] logits; None = all at once."""
    if rows * vocab_size <= CHUNK_NUMBERS:
        return None
    return max(1, CHUNK_NUMBERS // vocab_size)
