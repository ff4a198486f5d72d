"""How sure a measure is: the same measure of sources drawn again, with replacement (block bootstrap)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from moe_core.errors import UsageError
from moe_core.routing.metrics.resampling import TAILS, widening
from moe_core.routing.trace.counts import BlockCounts, Blocks, block_counts
from moe_core.routing.trace.stored import AnyTrace
from moe_core.routing.trace.types import Float64Array, Int64Array

MAX_UNITS = 256
"""More sources than this are resampled in this many random groups, which leaves the variance as it is."""
RESAMPLES = 200


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
        weights = np.zeros((resamples, self.count))
        for stratum in np.unique(self.stratum):
            own = np.flatnonzero(self.stratum == stratum)
            weights[:, own] = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), size=resamples)
        return weights

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
        away = np.nanquantile(drawn_RL, TAILS, axis=0) - np.nanmean(drawn_RL, axis=0)
        low[known], high[known] = np.clip(value_L[known] + widening(self.count, freedom) * away, *limits)
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
    return Units(of_block, _without_single(np.array(stratum)))


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


def _without_single(stratum_U: Int64Array) -> Int64Array:
    """A single unit of a domain cannot show how units differ: all such are one stratum, or join the largest."""
    strata, sizes = np.unique(stratum_U, return_counts=True)
    single = np.isin(stratum_U, strata[sizes == 1])
    if not single.any():
        return stratum_U
    shared = stratum_U[single][0] if single.sum() > 1 else strata[sizes.argmax()]
    return np.where(single, shared, stratum_U)
