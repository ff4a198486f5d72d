"""Exact bounds of shares of tokens that come in clusters, many shares at once: what a layer's load may really be.

Tokens of a source are alike and neighbours more so, and a token's K experts differ from each other. The variance of a
share over sources holds both; divided by that of independent tokens it is the design effect, and a text is worth its
tokens divided by it (Kish 1965; Rao and Scott 1981, 10.1080/01621459.1981.10477633).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import special

from moe_core.routing.statistics.bootstrap import without_single
from moe_core.routing.statistics.intervals import TAILS
from moe_core.routing.trace.blocks import BlockCounts, block_counts, blocks, has_few_sources, stretch_counts
from moe_core.routing.trace.counts import label_counts
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.routing.trace.shares import ratio
from moe_core.routing.trace.trace import AnyRouting, RoutingTrace
from moe_core.routing.trace.types import Float64Array, Int64Array

MAX_CLUSTERS = 64
"""More sources than this are put together with their neighbours. Sources that are windows of one text are alike, and
neighbouring tokens without documents too: their likeness then shows between clusters no more."""


LEAST_FREEDOM_OF_STEPS = 3
"""Degrees of freedom that steps have at least, however alike they are; fewer would know nothing of any training."""
MIN_CLUSTERS_IN_A_ROW, MAX_AUTOCORRELATION = 3, 0.95
"""Of fewer steps nothing is known of their likeness; more of it than this is not told from a trend."""
VariesBy = Literal["source", "step", ""]


@dataclass(frozen=True)
class Clusters:
    """Counts of clusters that are taken to be independent within their stratum. Axes: L layers, N clusters, E experts.

    Strata are domains: how much text of each there is was chosen, so that their differences are no chance.
    """

    counts: Int64Array | Float64Array
    """[L,N,E] tokens of the cluster that chose each expert."""
    tokens: Int64Array
    """[N]"""
    stratum: Int64Array
    """[N]"""
    sources: int
    """How many sources the text is of, whatever the clusters; or steps, see `varies_by`."""
    varies_by: VariesBy = "source"
    """Between what shares vary: sources, or steps of counts that do not tell sources apart; "" = nothing is known."""

    @property
    def total(self) -> int:
        """T, tokens in all."""
        return int(self.tokens.sum())

    @property
    def freedom(self) -> int:
        """Degrees of freedom of a variance over clusters; 0 where there is nothing to tell it from."""
        return len(self.tokens) - len(np.unique(self.stratum))


def clusters(trace: AnyRouting) -> Clusters:
    """Cut the trace into clusters: sources, neighbouring ones together where there are many, stretches where few."""
    sources = trace.count_sources()
    if has_few_sources(trace):
        parts, stretch_N = stretch_counts(trace)
        keys_C, cluster_N = np.unique([parts.domain_ids, stretch_N], axis=1, return_inverse=True)
        found = _added_up(parts, cluster_N.reshape(-1), keys_C[0], sources)
        if not isinstance(trace, RoutingCounts) or trace.knows_sources:
            return found
        steps = int(trace.tokens.any(axis=1).sum())
        return replace(found, sources=steps, varies_by="step") if steps > 1 else replace(found, varies_by="")
    if not isinstance(trace, RoutingTrace):  # the counts of every source are kept, or of random groups of them
        parts = block_counts(trace)
        return _added_up(parts, *_with_neighbours(parts.domain_ids), sources)
    own = blocks(trace)
    cluster_N, stratum_C = _with_neighbours(own.domain_ids)
    C = len(stratum_C)
    cluster_T = cluster_N[own.of_token]
    counts_LCE = label_counts(trace, lambda _: cluster_T, C)
    return Clusters(counts_LCE, np.bincount(cluster_T, minlength=C), without_single(stratum_C), sources)


def _added_up(parts: BlockCounts, cluster_N: Int64Array, stratum_C: Int64Array, sources: int) -> Clusters:
    """Every cluster's blocks together."""
    C, order = len(stratum_C), np.argsort(cluster_N, kind="stable")
    starts = np.searchsorted(cluster_N[order], np.arange(C))
    counts_LCE = np.stack([np.add.reduceat(counts_NE[order], starts) for counts_NE in parts.counts])
    tokens_C = np.bincount(cluster_N, parts.tokens, minlength=C).astype(np.int64)
    return Clusters(counts_LCE, tokens_C, without_single(stratum_C), sources)


@dataclass(frozen=True)
class Bounds:
    """Where shares [L,E] really are, 0..1; anywhere in it where clusters are too few to say how much they differ."""

    low: Float64Array
    """In 97.5 of 100 texts no share is below its own: of all layers and experts at once."""
    high: Float64Array
    """Each share by itself is below its own in 97.5 of 100 texts. So is the largest of them below the largest bound:
    who says that all are below something needs no care for how many there are (Berger 1982, 10.2307/1268787)."""
    high_of_all: Float64Array
    """In 97.5 of 100 texts no share is above its own."""
    effective_tokens: Float64Array
    """[L] as many independent tokens would tell as much of the layer as a whole; NaN where clusters are too few."""


def share_bounds(found: Clusters) -> Bounds:
    """Bounds of the share of tokens that choose each expert.

    Exact binomial limits (Clopper and Pearson 1934) of the tokens divided by the design effect: the larger of the
    expert's own and the layer's, which is far better known (the mean over experts; Rao and Scott 1981). For few
    clusters the tokens count still less, as Student's t has it against the normal (Korn and Graubard 1998).
    """
    T, freedom = found.total, found.freedom
    L, _, E = found.counts.shape
    share_LE = found.counts.sum(axis=1) / T
    if freedom < 1:
        none_LE, all_LE = np.zeros((L, E)), np.ones((L, E))
        return Bounds(none_LE, all_LE, all_LE, np.full(L, np.nan))
    variance_LE, independent_LE = _variances(found, share_LE)
    if found.varies_by == "step":
        likeness = _likeness_of_neighbours(found)
        variance_LE *= likeness
        freedom = min(freedom, max(int(freedom / likeness), LEAST_FREEDOM_OF_STEPS))
    layer_L = ratio(variance_LE.sum(axis=1), independent_LE.sum(axis=1))
    # A layer that does not vary at all says nothing of the tokens; the others do.
    layer_L = np.where(np.isnan(layer_L), np.nanmax(layer_L, initial=1.0), layer_L)
    effect_LE = np.fmax(np.fmax(ratio(variance_LE, independent_LE), layer_L[:, None]), 1.0)
    tail, one_of_many = TAILS[0], TAILS[0] / (L * E)  # Bonferroni
    trials_LE, few = T / effect_LE, T / effect_LE * _worth_of_few(freedom, one_of_many)
    low_LE, high_of_all_LE = exact_limits(share_LE, few, one_of_many)
    _, high_LE = exact_limits(share_LE, trials_LE * _worth_of_few(freedom, tail), tail)
    return Bounds(low_LE, high_LE, high_of_all_LE, T / np.maximum(layer_L, 1.0) * _worth_of_few(freedom, tail))


def share_low(found: Clusters, part_LN: Float64Array) -> Float64Array:
    """[L] lower bound of sum(part) / T, all layers at once; `part_LN` is each cluster's, at most its tokens."""
    whole = Clusters(part_LN[:, :, None], found.tokens, found.stratum, found.sources)
    return share_bounds(whole).low[:, 0]


def exact_limits(share: Float64Array, trials: Float64Array, tail: float) -> tuple[Float64Array, Float64Array]:
    """(low, high) of shares of so many trials, which need not be whole: Clopper and Pearson's, `tail` on each side."""
    hits = share * trials
    low = special.betaincinv(np.maximum(hits, 1e-12), trials - hits + 1, tail)
    high = special.betaincinv(hits + 1, np.maximum(trials - hits, 1e-12), 1 - tail)
    return np.where(share <= 0, 0.0, low), np.where(share >= 1, 1.0, high)


def _worth_of_few(freedom: int, tail: float) -> float:
    """By what the tokens of few clusters are to be multiplied: (z / t)^2 at this tail, 0..1."""
    return float((special.ndtri(tail) / special.stdtrit(freedom, tail)) ** 2)


def _variances(found: Clusters, share_LE: Float64Array) -> tuple[Float64Array, Float64Array]:
    """[L,E] variance of the shares over clusters, and of as many independent tokens.

    A token's experts differ, so that it chose each of them or did not: K experts are drawn without replacement.
    """
    variance_LE = np.zeros(share_LE.shape)
    for stratum in np.unique(found.stratum):
        own = found.stratum == stratum
        counts_LNE, tokens_N = found.counts[:, own], found.tokens[own]
        expected_LNE = (counts_LNE.sum(axis=1) / tokens_N.sum())[:, None] * tokens_N[:, None]
        n = int(own.sum())
        variance_LE += n / (n - 1) * ((counts_LNE - expected_LNE) ** 2).sum(axis=1)
    return variance_LE / found.total**2, np.clip(share_LE * (1 - share_LE), 0.0, None) / found.total


def _likeness_of_neighbours(found: Clusters) -> float:
    """How many times larger the variance of a mean is where neighbours are alike: (1 + r) / (1 - r).

    r is the autocorrelation of neighbouring clusters, pooled over layers, strata and experts, without the bias of few
    clusters (Marriott and Pope 1954, 10.1093/biomet/41.3-4.390). A load drifts through a training, and a batch of
    requests is decoded for many steps: without this an interval of 60 steps at phi .8 held the truth in 79 of 100.
    """
    products = squares = 0.0
    for stratum in np.unique(found.stratum):
        own = found.stratum == stratum
        counts_LNE, tokens_N = found.counts[:, own], found.tokens[own]
        away_LNE = counts_LNE - (counts_LNE.sum(axis=1) / tokens_N.sum())[:, None] * tokens_N[:, None]
        products += float((away_LNE[:, 1:] * away_LNE[:, :-1]).sum())
        squares += float((away_LNE**2).sum())
    N = len(found.tokens)
    if not squares or N < MIN_CLUSTERS_IN_A_ROW:
        return 1.0
    observed = products / squares
    r = min(max(observed + (1 + 3 * max(observed, 0.0)) / N, 0.0), MAX_AUTOCORRELATION)
    return (1 + r) / (1 - r)


def _with_neighbours(domain_N: Int64Array) -> tuple[Int64Array, Int64Array]:
    """([N] cluster of each source, [C] domain of each cluster): neighbours of one domain, about MAX_CLUSTERS in all."""
    cluster_N, domain_C = np.zeros(len(domain_N), dtype=np.int64), list[int]()
    for domain in np.unique(domain_N):
        own = np.flatnonzero(domain_N == domain)
        size = min(len(own), max(2, round(MAX_CLUSTERS * len(own) / max(len(domain_N), MAX_CLUSTERS))))
        cluster_N[own] = len(domain_C) + np.arange(len(own)) * size // len(own)
        domain_C += [int(domain)] * size
    return cluster_N, np.array(domain_C)
