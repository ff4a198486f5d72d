"""Block bootstrap: sources are drawn again with replacement, since tokens of one source are not independent.

How many domains' sources there are was chosen, not drawn, so sources are drawn within their domain where one is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special

from moe_core.errors import UsageError
from moe_core.routing.statistics.intervals import TAILS, t_quantile
from moe_core.routing.trace.blocks import BlockCounts, Blocks, block_counts
from moe_core.routing.trace.shares import ratio
from moe_core.routing.trace.trace import AnyTrace
from moe_core.routing.trace.types import Float64Array, Int64Array

MAX_UNITS = 256
"""More sources than this are resampled in this many random groups, which leaves the variance as it is."""
RESAMPLES = 200
"""Of a measure, which may be slow to compute."""
TOTALS_RESAMPLES = 1000
"""Of sums, which are quick."""
TOTALS_BLOCKS = 1000
"""More sources than this are put together at random into as many blocks, where sums are resampled."""


def draws(N: int, resamples: int, rng: np.random.Generator) -> Float64Array:
    """[R,N] how often each of N units is drawn when N are drawn with replacement."""
    times_RN: Float64Array = rng.multinomial(N, np.full(N, 1 / N), size=resamples).astype(np.float64)
    return times_RN


def stratified_draws(stratum_N: npt.NDArray[np.integer], resamples: int, rng: np.random.Generator) -> Float64Array:
    """[R,N] how often each unit is drawn, anew among those of its stratum."""
    times_RN = np.zeros((resamples, len(stratum_N)))
    for stratum in np.unique(stratum_N):
        own = np.flatnonzero(stratum_N == stratum)
        times_RN[:, own] = draws(len(own), resamples, rng)
    return times_RN


def widening(N: int, freedom: int) -> float:
    """By how much the percentiles of a bootstrap over N units with so many degrees of freedom lie too close.

    Resampling understates the variance of few, and their spread is known no better than Student's t (Hesterberg 2015,
    1411.5279, section 5.3).
    """
    return float(np.sqrt(N / freedom) * t_quantile(freedom) / special.ndtri(TAILS[1]))


def percentile_interval(
    value_L: Float64Array | float,
    resampled_RL: Float64Array,
    N: int,
    freedom: int,
    *,
    limits: tuple[float, float] = (-np.inf, np.inf),
    about_L: Float64Array | None = None,
) -> tuple[Float64Array, Float64Array]:
    """(low, high) [L], 95 %: percentiles over resamples of N units, widened for few of them, within `limits`.

    `about_L`: what the resamples lie about, where that is not the value itself.
    """
    away = np.nanquantile(resampled_RL, TAILS, axis=0) - (value_L if about_L is None else about_L)
    low_L, high_L = np.clip(value_L + widening(N, freedom) * away, *limits)
    return low_L, high_L


def source_blocks(source_ids_T: npt.NDArray[np.integer], rng: np.random.Generator) -> tuple[Int64Array, int]:
    """([T] number of each token's block, N blocks): a block is a source.

    More than TOTALS_BLOCKS sources are put together at random into as many blocks: what independent sources add up to
    is independent too, and a thousand blocks tell as much about their spread as a million.
    """
    sources, block_T = np.unique(source_ids_T, return_inverse=True)
    N = len(sources)
    if N > TOTALS_BLOCKS:
        block_T = (rng.permutation(N) % TOTALS_BLOCKS)[block_T]
        N = TOTALS_BLOCKS
    return block_T.astype(np.int64, copy=False), N


def resampled_totals(values_NX: npt.NDArray[np.number], rng: np.random.Generator) -> Float64Array:
    """[R,X] sums over N blocks drawn with replacement, R = TOTALS_RESAMPLES times."""
    totals_RX: Float64Array = draws(len(values_NX), TOTALS_RESAMPLES, rng) @ values_NX.astype(np.float64)
    return totals_RX


def totals_ratio_interval(
    part_NX: npt.NDArray[np.number], whole_NX: npt.NDArray[np.number], rng: np.random.Generator
) -> tuple[Float64Array, Float64Array]:
    """(low, high) [X], 95 %, within 0..1: sum over N blocks of a part / sum of the whole, blocks drawn anew.

    NaN with fewer than two blocks, or where there is no whole.
    """
    N, X = part_NX.shape
    if N < 2:
        return np.full(X, np.nan), np.full(X, np.nan)
    totals_RX = resampled_totals(np.concatenate([part_NX, whole_NX], axis=1), rng)
    resampled_RX = ratio(totals_RX[:, :X], totals_RX[:, X:])
    value_X = ratio(part_NX.sum(axis=0), whole_NX.sum(axis=0))
    return percentile_interval(value_X, resampled_RX, N, N - 1, limits=(0.0, 1.0))


@dataclass(frozen=True)
class Units:
    """What is drawn again: sources, or random groups of them. Axes: N blocks, U units."""

    of_block: Int64Array
    """[N]"""
    stratum: Int64Array
    """[U] units are drawn anew among those of their stratum: how many of each domain there are was chosen."""

    @property
    def count(self) -> int:
        """U."""
        return len(self.stratum)

    def weights(self, resamples: int, rng: np.random.Generator) -> Float64Array:
        """[R,U] how often each unit is drawn."""
        return stratified_draws(self.stratum, resamples, rng)

    def interval(
        self, value_L: Float64Array, resampled_RL: Float64Array, limits: tuple[float, float] = (0.0, 1.0)
    ) -> tuple[Float64Array, Float64Array]:
        """(low, high) [L]: 95 % interval of the measure; NaN with fewer than two units or an undefined measure.

        Drawing a source twice makes its tokens agree, which raises measures of association: the resamples are shifted
        so that their mean is the measure. Like the measure itself the interval is thus to be held against the null
        of as many tokens. For few sources it is widened to Student's t.
        """
        low, high = np.full(value_L.shape, np.nan), np.full(value_L.shape, np.nan)
        freedom = self.count - len(np.unique(self.stratum))
        known = ~np.isnan(value_L) & (np.isnan(resampled_RL).mean(axis=0) < 0.5)
        if freedom < 1 or not known.any():
            return low, high
        drawn_RL = resampled_RL[:, known]
        low[known], high[known] = percentile_interval(
            value_L[known], drawn_RL, self.count, freedom, limits=limits, about_L=np.nanmean(drawn_RL, axis=0)
        )
        return low, high


def units(parts: Blocks | BlockCounts, seed: int) -> Units:
    """Sources as they are, or where there are many, grouped at random within their domain."""
    domain_ids = parts.domain_ids
    rng = np.random.default_rng(seed)
    N = len(domain_ids)
    of_block = np.zeros(N, dtype=np.int64)
    stratum: list[int] = []
    for domain in np.unique(domain_ids):
        own = np.flatnonzero(domain_ids == domain)
        groups = len(own) if N <= MAX_UNITS else min(len(own), max(2, round(MAX_UNITS * len(own) / N)))
        of_block[own] = len(stratum) + rng.permutation(len(own)) % groups
        stratum += [int(domain)] * groups
    return Units(of_block, without_single(np.array(stratum)))


def bootstrap(
    trace: AnyTrace,
    statistic: Callable[[Float64Array], Float64Array],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> pd.DataFrame:
    """95 % interval of any measure of a layer's counts, by block bootstrap over sources.

    `statistic` takes counts [...,M,E] (assignments of each domain's tokens to each expert of one layer) and gives
    [...]: for the load imbalance, `lambda c: c.sum(-2).max(-1) / c.sum(-2).mean(-1)`. `limits`: its range.
    Columns: layer, value, low, high (NaN with fewer than two sources in every domain), sources.
    """
    if resamples < 2:
        raise UsageError(f"resamples is {resamples}; expected 2 or more, e.g. 200")
    parts = block_counts(trace)
    value_L = np.array([float(c) for c in statistic(by_domain(parts.counts, parts.domain_ids, len(trace.domains)))])
    low, high = count_interval(parts, len(trace.domains), value_L, statistic, resamples, seed, limits)
    return pd.DataFrame(
        {"layer": trace.layers, "value": value_L, "low": low, "high": high, "sources": len(parts.tokens)}
    )


def count_interval(
    parts: BlockCounts,
    domains: int,
    value_L: Float64Array,
    statistic: Callable[[Any], Float64Array],
    resamples: int,
    seed: int,
    limits: tuple[float, float],
) -> tuple[Float64Array, Float64Array]:
    """(low, high) [L] of a statistic of counts [...,M,E], see bootstrap."""
    drawn = units(parts, seed)
    # A unit has blocks of one domain only.
    domain_U = np.zeros(drawn.count, dtype=np.int64)
    domain_U[drawn.of_block] = parts.domain_ids
    counts_LUE = np.stack([summed(counts_NE, drawn.of_block, drawn.count) for counts_NE in parts.counts])
    weights_RU = drawn.weights(resamples, np.random.default_rng([seed, 1]))
    resampled_RL = np.empty((resamples, len(value_L)))
    for row, counts_UE in enumerate(counts_LUE):
        counts_RME = np.stack([weights_RU[:, domain_U == m] @ counts_UE[domain_U == m] for m in range(domains)], axis=1)
        resampled_RL[:, row] = statistic(counts_RME)
    return drawn.interval(value_L, resampled_RL, limits)


def summed(values_N: Int64Array | Float64Array, groups_N: Int64Array, size: int) -> Float64Array:
    """[G,...] sums of the rows [N,...] of each group."""
    total = np.zeros((size, *values_N.shape[1:]))
    np.add.at(total, groups_N, values_N)
    return total


def by_domain(counts_LNE: Int64Array, domain_ids_N: Int64Array, domains: int) -> Float64Array:
    """[L,M,E]"""
    return np.stack([summed(counts_NE, domain_ids_N, domains) for counts_NE in counts_LNE])


def without_single(stratum_U: Int64Array) -> Int64Array:
    """A single unit of a domain cannot show how units differ: all such are one stratum, or join the largest."""
    strata, sizes = np.unique(stratum_U, return_counts=True)
    single = np.isin(stratum_U, strata[sizes == 1])
    if not single.any():
        return stratum_U
    shared = stratum_U[single][0] if single.sum() > 1 else strata[sizes.argmax()]
    return np.where(single, shared, stratum_U)
