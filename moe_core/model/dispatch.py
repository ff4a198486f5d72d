"""The number of rows below which experts are visited in one grouped call. No torch: the memory formulas use it, too."""

from __future__ import annotations

FEW_ROWS = 384
"""Rows per expert, on average; see few_rows."""


def few_rows(slots: int, num_experts: int) -> bool:
    """Whether `slots` chosen slots (T * K) leave each expert so few rows that one grouped call is faster than slices.

    This holds on a CPU where gradients are wanted, as measured (docs/LOG.md, 2026-11-23, dispatch).
    """
    return slots < FEW_ROWS * num_experts
