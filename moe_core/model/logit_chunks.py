"""How many rows of logits the loss makes at a time. No torch: the memory formulas use it, too."""

from __future__ import annotations

CHUNK_NUMBERS = 2**27
"""Logits of one chunk: 512 MiB of float32, many enough rows for full speed."""


def chunk_rows(rows: int, vocab_size: int, device: str) -> int | None:
    """Rows of a chunk, of [rows, vocab_size] logits; None = all at once."""
    if device != "cuda":
        return None
    return min(rows, max(1, CHUNK_NUMBERS // vocab_size))
