"""95 % intervals and tests of one number: Student's t for means and ratios, Wilson's for shares, exact for hits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from moe_core.routing.statistics.multiple_comparisons import SIGNIFICANCE
from moe_core.routing.trace.shares import ratio
from moe_core.routing.trace.types import Float64Array, Int64Array

CONFIDENCE = 0.95
TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
"""Quantiles at the ends of an interval."""


def t_quantile(freedom: float | Float64Array) -> Float64Array:
    """Half the width of an interval in standard errors, for so many degrees of freedom."""
    quantile: Float64Array = special.stdtrit(freedom, TAILS[1])
    return quantile


def mean_error(values: Float64Array) -> float:
    """Standard error of the mean of [n] values; NaN of fewer than two."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def ratio_error(sum_C: Float64Array, weight_C: Float64Array, stratum_C: npt.NDArray[np.generic]) -> tuple[float, int]:
    """Standard error of sum(sum_C) / sum(weight_C) and its degrees of freedom; a stratum of one source lends it none.

    Residuals r = s - R w of the ratio R; variance = sum over strata of n / (n - 1) sum (r - mean r)^2, over W^2.
    """
    residual = sum_C - sum_C.sum() / weight_C.sum() * weight_C
    variance, freedom = 0.0, 0
    for stratum in np.unique(stratum_C):
        own = residual[stratum_C == stratum]
        if len(own) > 1:
            variance += len(own) / (len(own) - 1) * float(((own - own.mean()) ** 2).sum())
            freedom += len(own) - 1
        else:
            variance += float(own[0] ** 2)
    return math.sqrt(variance) / float(weight_C.sum()), freedom


def ratio_errors(
    part_LCX: Float64Array, whole_LC: Float64Array, stratum_C: npt.NDArray[np.generic]
) -> tuple[Float64Array, Float64Array, int]:
    """([L,X] sum of the parts / sum of the whole over C clusters, [L,X] its standard error, degrees of freedom).

    As ratio_error, many at once; strata of a single cluster add nothing (see bootstrap.without_single).
    """
    total_L1 = whole_LC.sum(axis=1)[:, None]
    value_LX = ratio(part_LCX.sum(axis=1), total_L1)
    residual_LCX = part_LCX - value_LX[:, None] * whole_LC[:, :, None]
    strata = np.unique(stratum_C)
    variance_LX = np.zeros(value_LX.shape)
    for stratum in strata:
        own = residual_LCX[:, stratum_C == stratum]
        n = own.shape[1]
        variance_LX += n / max(n - 1, 1) * ((own - own.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    return value_LX, ratio(np.sqrt(variance_LX), total_L1), len(stratum_C) - len(strata)


def student_interval(mean: float, error: float, freedom: int) -> tuple[float, float]:
    """95 % interval of a mean with so many degrees of freedom; NaN without any."""
    if freedom < 1:
        return math.nan, math.nan
    half = float(t_quantile(freedom)) * error
    return mean - half, mean + half


def p_of_intervals(value: Float64Array, low: Float64Array, high: Float64Array) -> Float64Array:
    """Two-sided p that each value is 0 in truth, by its 95 % interval, as if its error were normal; 1 of a value that
    is 0, NaN without an interval. For frames that keep intervals alone: of few sources it is too small in the tails."""
    error = np.where(value > 0, value - low, high - value) / special.ndtri(TAILS[1])
    away = np.where(value == 0, 0.0, np.abs(value) / np.maximum(error, 1e-300))
    p: Float64Array = 2 * special.ndtr(-away)
    return np.where(np.isnan(low), np.nan, p)


def student_p(difference: float, error: float, freedom: int, n: int) -> float:
    """Two-sided p: how often a difference of nothing would look this large; NaN without degrees of freedom.

    Without any spread, what flipping the sign of all n differences alike gives.
    """
    if freedom < 1:
        return math.nan
    if error <= 1e-12 * max(1.0, abs(difference)):
        return 1.0 if abs(difference) < 1e-12 else least_paired_p(n)
    return float(2 * special.stdtr(freedom, -abs(difference / error)))


def least_paired_p(n: int) -> float:
    """The least two-sided p, 0..1, of n differences: what flipping all their signs alike gives.

    Student's t goes below it where few differences are alike by accident, as counts of few tokens often are.
    """
    return 2.0 ** (1 - n) if n else 1.0


def least_unpaired_p(n: int, m: int) -> float:
    """The least two-sided p, 0..1, of n values against m others: what exchanging them gives."""
    return min(1.0, 2.0 / math.comb(n + m, n))


@dataclass(frozen=True)
class PairedDifference:
    """The mean of what one side has more than the other, pair by pair."""

    mean: float
    low: float
    """Lower end of the 95 % t-interval; NaN with one pair."""
    high: float
    p_value: float
    """Two-sided: how often a difference of nothing would look this large; NaN with one pair."""
    pairs: int

    @property
    def verdict(self) -> Literal["higher", "lower", "not distinguishable"]:
        """ "higher" or "lower" where p is at most 0.05, that is where the interval leaves 0 out, else "not
        distinguishable"."""
        if not self.p_value <= SIGNIFICANCE:
            return "not distinguishable"
        return "higher" if self.mean > 0 else "lower"


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> PairedDifference:
    """values[i] - reference[i], where i is what both have in common: Student's t with n - 1 degrees of freedom.

    Of two arms trained with the same seeds it covers what another seed of weights and data order would change, not what
    another corpus would.
    """
    differences = np.asarray(values, dtype=float) - np.asarray(reference, dtype=float)
    n = len(differences)
    if n == 0:
        raise ValueError("expected at least one pair")
    mean, error = float(differences.mean()), mean_error(differences)
    low, high = student_interval(mean, error, n - 1)
    return PairedDifference(mean, low, high, student_p(mean, error, n - 1, n), n)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a share, 0..1, that is sensible for few trials and near 0 and 1 (Wilson 1927)."""
    if not n:
        return math.nan, math.nan
    from scipy import stats  # here, because it takes a second to import that the dashboard has not

    found = stats.binomtest(hits, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def wilson_of_shares(share_E: Float64Array, n_E: Float64Array) -> tuple[Float64Array, Float64Array]:
    """(low, high) [E]: Wilson's interval of shares of so many independent trials each, which need not be whole."""
    z = float(special.ndtri(TAILS[1]))
    centre_E = (share_E + z**2 / (2 * n_E)) / (1 + z**2 / n_E)
    half_E = z / (1 + z**2 / n_E) * np.sqrt(np.clip(share_E * (1 - share_E), 0.0, None) / n_E + z**2 / (4 * n_E**2))
    return np.clip(centre_E - half_E, 0.0, None), centre_E + half_E


def wilson_of_clusters(
    counts_NE: Int64Array, tokens_N: Int64Array, share_E: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """(low, high) [E]: Wilson's interval of shares over N >= 2 clusters, whose own tokens are alike.

    `counts_NE` of each cluster's `tokens_N`; share_E = their sums' ratio. The tokens are divided by the design effect:
    the variance of the share over clusters against that of independent tokens (Korn and Graubard 1998).
    """
    N, total = len(tokens_N), float(tokens_N.sum())
    independent_E = np.clip(share_E * (1 - share_E), 0.0, None) / total
    residual_NE = counts_NE - share_E * tokens_N[:, None]
    between_E = N / (N - 1) * (residual_NE**2).sum(axis=0) / total**2
    # A share that no cluster (or every token) has shows no variance of its own: take the effect of all together.
    common = float(between_E.sum() / independent_E.sum()) if independent_E.any() else 1.0
    effect_E = np.divide(between_E, independent_E, out=np.full_like(share_E, common), where=independent_E > 0)
    z, t = float(special.ndtri(TAILS[1])), float(t_quantile(N - 1))
    n_E = total / np.maximum(effect_E, 1.0) * (z / t) ** 2
    low_E, high_E = wilson_of_shares(share_E, n_E)
    return np.minimum(low_E, share_E), np.maximum(high_E, share_E)


def number_of_hits_p(hits: int, chance_N: Float64Array) -> float:
    """Two-sided p of `hits` successes in trials of their own probabilities (Poisson binomial); 1 without trials."""
    p_of_number = np.ones(1)
    for chance in chance_N:
        p_of_number = np.convolve(p_of_number, (1 - chance, chance))
    likely = p_of_number[hits] * (1 + 1e-9)
    return min(1.0, float(p_of_number[p_of_number <= likely].sum()))
