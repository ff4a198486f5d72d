"""Differences between arms that were trained with the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moe_core.routing.baselines import SIGNIFICANCE
from moe_core.routing.statistics.intervals import interval, mean_error, two_sided_p


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
        """ "higher" or "lower" where p is at most 0.05, that is where the interval leaves 0 out, else "not
        distinguishable"."""
        if not self.p_value <= SIGNIFICANCE:
            return "not distinguishable"
        return "higher" if self.mean > 0 else "lower"


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> PairedDifference:
    """values[i] - reference[i], where i is a seed both were trained with: Student's t with n - 1 degrees of freedom.

    It covers what another seed of weights and data order would change, not what another corpus would.
    """
    differences = np.asarray(values, dtype=float) - np.asarray(reference, dtype=float)
    n = len(differences)
    if n == 0:
        raise ValueError("expected at least one pair")
    mean, error = float(differences.mean()), mean_error(differences)
    low, high = interval(mean, error, n - 1)
    return PairedDifference(mean, low, high, two_sided_p(mean, error, n - 1, n), n)
