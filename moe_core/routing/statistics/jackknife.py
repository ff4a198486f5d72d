"""Delete-a-group jackknife: how far a measure of all tokens would move with other sources.

Sources are dealt at random to groups, and the measure is computed without each group in turn (Kott 2001, The
delete-a-group jackknife, Journal of Official Statistics 17, 521-526). No source is ever counted twice, so that a
measure of association is not raised, as it is where sources are drawn again. How many sources of each domain there are
was chosen, not drawn: groups are dealt within a domain, and what is left of it takes the weight of what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_core.routing.statistics.bootstrap import without_single
from moe_core.routing.statistics.intervals import t_quantile
from moe_core.routing.trace.blocks import BlockCounts, SourceDomains, source_domains
from moe_core.routing.trace.trace import AnyRouting, RoutingTrace
from moe_core.routing.trace.types import Float64Array, Int64Array

MAX_GROUPS = 64
"""More sources than this are dealt to as many groups: Student's t of 63 degrees of freedom is within 2 % of normal."""
MIN_GROUPS = 12
"""Fewer groups than this are not made to save memory."""


@dataclass(frozen=True)
class Groups:
    """What is left out in turn. Axes: G groups, C numbers counted of each, L values."""

    stratum: Int64Array
    """[G] a group's stratum; the groups of a stratum stand for each other."""

    @property
    def count(self) -> int:
        """G."""
        return len(self.stratum)

    @property
    def freedom(self) -> int:
        """Degrees of freedom: groups less strata; 0 where there is nothing to judge by."""
        return self.count - len(np.unique(self.stratum))

    def _of_stratum(self) -> tuple[Int64Array, Int64Array]:
        """([G] place of the group's stratum, [G] n, how many groups that stratum has)."""
        _, place_G, sizes = np.unique(self.stratum, return_inverse=True, return_counts=True)
        return place_G, sizes[place_G]

    def without_each(self, counts_GC: npt.NDArray[np.number]) -> Float64Array:
        """[G,C] sums without each group, the other groups of its stratum weighted by n / (n - 1)."""
        counts_GC = counts_GC.astype(np.float64)
        place_G, n_G = self._of_stratum()
        sums_HC = _sums_of_rows(counts_GC, place_G, place_G.max() + 1)
        fewer_G1 = np.maximum(n_G - 1, 1)[:, None]
        left_GC: Float64Array = sums_HC[place_G] / fewer_G1 - n_G[:, None] / fewer_G1 * counts_GC
        left_GC[n_G < 2] = 0.0  # a group that nothing stands for is not left out
        left_GC += counts_GC.sum(axis=0)
        return left_GC

    def parts_without_each(
        self, counts_GC: npt.NDArray[np.number], part_G: Int64Array, parts: int
    ) -> Iterator[Float64Array]:
        """For each group [P,C], the sums of each part of the groups (group g is in part_G[g]) without that group."""
        place_G, n_G = self._of_stratum()
        H = place_G.max() + 1
        sums_HPC = _sums_of_rows(counts_GC, place_G * parts + part_G, H * parts).reshape(H, parts, -1)
        all_PC = sums_HPC.sum(axis=0)
        for stratum, n, part, own_C in zip(place_G, n_G, part_G, counts_GC, strict=True):
            left_PC: Float64Array = all_PC.copy()
            if n > 1:
                left_PC += sums_HPC[stratum] / (n - 1)
                left_PC[part] -= own_C * (n / (n - 1))
            yield left_PC

    def error(self, value_L: Float64Array, left_out_GL: Float64Array) -> Float64Array:
        """[L] standard error, the square root of the sum over groups of (n - 1) / n (without it - with all)^2.

        Kott 2001, equation 1, summed over strata. NaN without degrees of freedom.
        """
        if self.freedom < 1:
            return np.full(value_L.shape, np.nan)
        n_G = self._of_stratum()[1]
        error_L: Float64Array = np.sqrt((((n_G - 1) / n_G)[:, None] * (left_out_GL - value_L) ** 2).sum(axis=0))
        return error_L

    def interval(
        self,
        value_L: Float64Array,
        left_out_GL: Float64Array,
        estimate_L: Float64Array | None = None,
        limits: tuple[float, float] = (0.0, 1.0),
    ) -> tuple[Float64Array, Float64Array]:
        """(low, high) [L], 95 %: Student's t about `estimate_L` (else the value), within `limits`.

        NaN without degrees of freedom, or where the measure is undefined without some group.
        """
        about_L = value_L if estimate_L is None else estimate_L
        half_L = t_quantile(max(self.freedom, 1)) * self.error(value_L, left_out_GL)
        return np.clip(about_L - half_L, *limits), np.clip(about_L + half_L, *limits)

    def cell_variance(self, counts_GC: npt.NDArray[np.number]) -> Float64Array:
        """[C] variance of each share p = count / all counts, as the groups differ; multinomial without freedom.

        Residuals r = count - p (all counts of the group) of the ratio p; the sum over strata of n / (n - 1) sum (r -
        mean r)^2, over the square of all counts.
        """
        total_C = counts_GC.sum(axis=0).astype(np.float64)
        total = total_C.sum()
        share_C: Float64Array = total_C / max(total, 1.0)
        if self.freedom < 1:
            independent_C: Float64Array = share_C * (1 - share_C) / max(total, 1.0)
            return independent_C
        place_G, n_G = self._of_stratum()
        residual_GC = counts_GC - counts_GC.sum(axis=1, dtype=np.float64)[:, None] * share_C
        mean_HC = _sums_of_rows(residual_GC / n_G[:, None], place_G, place_G.max() + 1)
        residual_GC -= np.where(n_G[:, None] > 1, mean_HC[place_G], 0.0)
        weight_G = n_G / np.maximum(n_G - 1, 1)
        variance_C: Float64Array = (weight_G[:, None] * residual_GC**2).sum(axis=0) / max(total, 1.0) ** 2
        return variance_C


@dataclass(frozen=True)
class SourceGroups:
    """The groups of a trace's sources, for tokens of any part of it."""

    sources: SourceDomains
    of_source: Int64Array
    """[S] the source's group."""
    groups: Groups

    def label(self, part: RoutingTrace) -> Int64Array:
        """[T] the group of each token."""
        group_T: Int64Array = self.of_source[self.sources.find(part)]
        return group_T

    def of_blocks(self, parts: BlockCounts, domains: int) -> Int64Array:
        """[N] the group of each block of counts.block_counts, in a trace of so many domains."""
        keys_N = parts.source_ids if self.sources.hashed is None else parts.source_ids * domains + parts.domain_ids
        group_N: Int64Array = self.of_source[np.searchsorted(self.sources.keys, keys_N)]
        return group_N


def source_groups(trace: AnyRouting, seed: int = 0, most: int = MAX_GROUPS) -> SourceGroups:
    """Deal the trace's sources to at most about `most` groups, at random within their domain.

    Sources that have text of several domains are a stratum of their own. Where there are no more sources than `most`,
    each is a group.
    """
    sources = source_domains(trace)
    rng, S = np.random.default_rng([seed, 3]), len(sources.keys)
    of_source, strata = np.zeros(S, dtype=np.int64), list[int]()
    for domain in np.unique(sources.domain):
        own = np.flatnonzero(sources.domain == domain)
        size = len(own) if most >= S else min(len(own), max(2, round(most * len(own) / S)))
        of_source[own] = len(strata) + rng.permutation(len(own)) % size
        strata += [int(domain)] * size
    return SourceGroups(sources, of_source, Groups(without_single(np.array(strata, dtype=np.int64))))


def groups_for(trace: AnyRouting, numbers: int, seed: int, budget: int) -> SourceGroups:
    """As `source_groups`, fewer where `numbers` counts for each group would be more than `budget` together."""
    return source_groups(trace, seed, max(MIN_GROUPS, min(MAX_GROUPS, budget // max(numbers, 1))))


def _sums_of_rows(rows_GC: npt.NDArray[np.number], place_G: Int64Array, size: int) -> Float64Array:
    """[size,C] the sum of the rows of each place. A row at a time: numpy's add.at goes number by number."""
    sums = np.zeros((size, rows_GC.shape[1]))
    for place, row_C in zip(place_G.tolist(), rows_GC, strict=True):
        sums[place] += row_C
    return sums
