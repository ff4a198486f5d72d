"""Differences between arms that were trained with the same seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class PairedDifference:
    """The mean of what one side has more than the other, seed by seed."""

    mean: float
    low: float
    """Lower end of the 95 % t-interval; NaN with one seed."""
    high: float
    p_value: float
    """Two-sided: how often a difference of nothing would look this large; NaN with one seed."""
    pairs: int

    @property
    def verdict(self) -> str:
        """ "higher", "lower", or "not distinguishable" where the interval holds 0 or is not known."""
        if self.low > 0:
            return "higher"
        return "lower" if self.high < 0 else "not distinguishable"


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> PairedDifference:
    """values[i] - reference[i], where i is a seed both were trained with: Student's t with n - 1 degrees of freedom.

    It covers what another seed of weights and data order would change, not what another corpus would.
    """
    differences = np.asarray(values, dtype=float) - np.asarray(reference, dtype=float)
    n = len(differences)
    if n == 0:
        raise ValueError("expected at least one pair")
    mean = float(differences.mean())
    if n == 1:
        return PairedDifference(mean, math.nan, math.nan, math.nan, 1)
    from scipy import stats

    error = float(differences.std(ddof=1)) / math.sqrt(n)
    reach = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * error
    p_value = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error > 0 else float(mean == 0)
    return PairedDifference(mean, mean - reach, mean + reach, p_value, n)
