"""By what number of rows experts are visited in one way or the other; without torch: memory is counted by it, too."""

from __future__ import annotations

FEW_ROWS = 384
"""Rows an expert, on average; see few_rows."""


def few_rows(slots: int, num_experts: int) -> bool:
    """Do so many chosen slots (T * K) leave each expert so few rows that, where gradients are wanted, one grouped call
    is faster on a CPU than slices? Measured (docs/LOG.md, 2026-11-23, dispatch)."""
    return slots < FEW_ROWS * num_experts
