"""Block bootstrap: sources are drawn anew with replacement, since tokens of one source are not independent.

Its ends (TAILS) and what few sources make of them (widening) are shared with baselines.resampling.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import special

from moe_core.routing.trace.types import Float64Array, Int64Array

CONFIDENCE = 0.95
TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
"""Quantiles at the ends of an interval."""
RESAMPLES = 1000
_MOST_BLOCKS = 1000


def source_blocks(source_ids_T: npt.NDArray[np.integer], rng: np.random.Generator) -> tuple[Int64Array, int]:
    """([T] number of each token's block, N blocks): a block is a source.

    More than _MOST_BLOCKS sources are put together at random into as many blocks: what independent sources add up to
    is independent too, and a thousand blocks tell as much about their spread as a million.
    """
    sources, block_T = np.unique(source_ids_T, return_inverse=True)
    N = len(sources)
    if N > _MOST_BLOCKS:
        block_T = (rng.permutation(N) % _MOST_BLOCKS)[block_T]
        N = _MOST_BLOCKS
    return block_T.astype(np.int64, copy=False), N


def resampled_totals(values_NX: npt.NDArray[np.number], rng: np.random.Generator) -> Float64Array:
    """[R,X] sums over N blocks drawn with replacement, R = RESAMPLES times (Efron 1979)."""
    N = len(values_NX)
    times_RN = rng.multinomial(N, np.full(N, 1 / N), size=RESAMPLES)
    totals: Float64Array = times_RN.astype(np.float64) @ values_NX.astype(np.float64)
    return totals


def widening(N: int, freedom: int) -> float:
    """By how much the percentiles of a bootstrap over N units with so many degrees of freedom lie too close.

    Resampling understates the variance of few, and their spread is known no better than Student's t (Hesterberg 2015,
    1411.5279, section 5.3).
    """
    return float(np.sqrt(N / freedom) * special.stdtrit(freedom, TAILS[1]) / special.ndtri(TAILS[1]))


def percentile_interval(value_L: Float64Array, resampled_RL: Float64Array, N: int) -> tuple[Float64Array, Float64Array]:
    """(low, high) [L], 95 %: percentiles of a share over resamples of N >= 2 blocks, within 0..1.

    For few blocks widened to Student's t.
    """
    low_L, high_L = value_L + widening(N, N - 1) * (np.quantile(resampled_RL, TAILS, axis=0) - value_L)
    return np.clip(low_L, 0.0, 1.0), np.clip(high_L, 0.0, 1.0)
