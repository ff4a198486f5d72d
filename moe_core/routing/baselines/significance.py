"""What the null models share: when a value counts as found, and how many tests at once are paid for.

A verdict needs both: significance (above the null) and size (large enough to matter), never a bare p. With several
layers the p-values are adjusted (Benjamini-Hochberg), so that one of many layers does not look special by luck.
"""

from __future__ import annotations

import numpy as np

from moe_core.errors import UsageError
from moe_core.routing.types import Float64Array

SIGNIFICANCE = 0.05
CHANCE = "not distinguishable from chance"
FEW_DOCUMENTS = "cannot be tested: too few documents"


def check_permutations(permutations: int) -> None:
    """Raises UsageError for a number of permutations that tests nothing."""
    if permutations < 1:
        raise UsageError(f"permutations is {permutations}; expected 1 or more, e.g. 200")


def p_values(value_L: Float64Array, null_PL: Float64Array) -> Float64Array:
    """(1 + #{null >= value}) / (1 + P) for each layer, 0..1 (Phipson and Smyth 2010); NaN where the null is NaN."""
    # Rounding must not let a permutation that gives the very same value count as smaller.
    p_L: Float64Array = (1 + (null_PL >= value_L - 1e-12).sum(axis=0)) / (1 + len(null_PL))
    return np.where(np.isnan(null_PL).any(axis=0) | np.isnan(value_L), np.nan, p_L)


def adjust(p_values: Float64Array) -> Float64Array:
    """Benjamini-Hochberg adjusted p-values: at most this share of what one calls significant is luck.

    NaN stays NaN. As scipy.stats.false_discovery_control, whose import takes a second that the dashboard has not.
    """
    adjusted = np.full(p_values.shape, np.nan)
    order = np.argsort(p_values)[: int((~np.isnan(p_values)).sum())]  # NaN sorts last
    inflated = p_values[order] * len(order) / np.arange(1, len(order) + 1)
    adjusted[order] = np.minimum.accumulate(inflated[::-1])[::-1].clip(max=1.0)
    return adjusted


def judge(p_adjusted: float, effect: float, *, clear_effect: float, clearly: str, slightly: str) -> str:
    """The verdict in words: CHANCE unless significant, then by the size of the effect. NaN is never significant."""
    if not p_adjusted <= SIGNIFICANCE:
        return CHANCE
    return clearly if effect >= clear_effect else slightly
