"""Labels permuted by source, each difference in units of its own error: is a domain's share other than the rest's?

Sources of two domains may differ in length and in how alike they are among themselves. A plain permutation of labels
takes that difference of spread for one of shares: with thirty short sources of one domain and ten long ones of another
it found a cell in 81 of 100 random traces. A difference over its own standard error has the same law whatever the
spreads, for many sources (Janssen 1997, 10.1016/S0167-7152(97)00043-6; Chung and Romano 2013, 10.1214/13-AOS1090).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import lgamma, log
from typing import NamedTuple

import numpy as np

from moe_core.routing.trace.blocks import BlockCounts
from moe_core.routing.trace.shares import ratio
from moe_core.routing.trace.types import BoolArray, Float64Array, Int64Array

_NUMBERS = 2**22  # labels in memory at once


class LabelledShares(NamedTuple):
    """Shares of tokens by domain. Axes: P permutations, M domains, L layers, E experts; row 0 is as observed."""

    difference: Float64Array
    """[1+P,L,M,E] share of the domain less that of all other tokens, in standard errors; NaN where there is no error:
    the domain has fewer than two sources, or an expert is always or never chosen."""
    expected: Float64Array
    """[L,M,E] mean share over the permutations; NaN for a domain without tokens."""


def labelled_shares(parts: BlockCounts, domains: int, permutations: int, rng: np.random.Generator) -> LabelledShares:
    """Shares with the observed labels of the blocks and with the other orders of `label_orders`."""
    (L, N, E), M = parts.counts.shape, domains
    tokens_N = parts.tokens.astype(np.float64)
    sums_LNX = [_sums_of_blocks(counts_NE, tokens_N) for counts_NE in parts.counts]
    usual_LE = np.stack([_usual_variance(counts_NE, tokens_N) for counts_NE in parts.counts])
    labels_DN = label_orders(parts.domain_ids, permutations, rng)
    D, together = len(labels_DN), max(1, _NUMBERS // (M * N))
    difference_DLME, expected_LME = np.empty((D, L, M, E)), np.zeros((L, M, E))
    for start in range(0, D, together):
        labels_PN = labels_DN[start : start + together]
        own_PMN = labels_PN[:, None] == np.arange(M)[:, None]
        for layer in range(L):
            share_PME, difference_PME = _shares(own_PMN, sums_LNX[layer], tokens_N, usual_LE[layer])
            difference_DLME[start : start + together, layer] = difference_PME
            expected_LME[layer] += np.nan_to_num(share_PME[0 if start else 1 :]).sum(axis=0)
    expected_LME[:, np.bincount(parts.domain_ids, minlength=M) == 0] = np.nan
    return LabelledShares(difference_DLME, expected_LME / (D - 1))


def label_orders(labels_N: Int64Array, permutations: int, rng: np.random.Generator) -> Int64Array:
    """[1+P,N] the labels as they are, then all other orders of them where these are no more than `permutations`, which
    makes the test exact, or else as many random ones."""
    sizes = np.unique(labels_N, return_counts=True)[1]
    ways = lgamma(sizes.sum() + 1) - sum(lgamma(n + 1) for n in sizes)
    if ways < log(permutations + 1.5):
        others = [order for order in _distinct_orders(sorted(labels_N.tolist())) if order != labels_N.tolist()]
        return np.array([labels_N.tolist(), *others])
    return np.stack([labels_N, *(rng.permutation(labels_N) for _ in range(permutations))])


def _distinct_orders(labels: list[int]) -> Iterator[list[int]]:
    """Every order of a sorted list of labels once."""
    if not labels:
        yield []
    for place, label in enumerate(labels):
        if not place or labels[place - 1] != label:
            for rest in _distinct_orders(labels[:place] + labels[place + 1 :]):
                yield [label, *rest]


def _sums_of_blocks(counts_NE: Int64Array, tokens_N: Float64Array) -> Float64Array:
    """[N,3E] what adds up to shares and their errors: c, c^2 and c w of each block's counts c and tokens w."""
    c_NE = counts_NE.astype(np.float64)
    return np.concatenate([c_NE, c_NE**2, c_NE * tokens_N[:, None]], axis=1)


def _shares(
    own_PMN: BoolArray, sums_NX: Float64Array, tokens_N: Float64Array, usual_E: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """(share of each domain, its difference from the rest in standard errors) [P,M,E]."""
    own = own_PMN.astype(np.float64)
    sums_PMX, n_PM1 = own @ sums_NX, own.sum(axis=-1)[..., None]
    w_PM1, ww_PM1 = (own @ tokens_N)[..., None], (own @ tokens_N**2)[..., None]
    N, W, WW = len(tokens_N), tokens_N.sum(), (tokens_N**2).sum()
    share, variance = _share_and_variance(sums_PMX, n_PM1, w_PM1, ww_PM1, usual_E)
    rest, variance_of_rest = _share_and_variance(
        sums_NX.sum(axis=0) - sums_PMX, N - n_PM1, W - w_PM1, WW - ww_PM1, usual_E
    )
    return share, ratio(share - rest, np.sqrt(variance + variance_of_rest))


def _share_and_variance(
    sums_PMX: Float64Array, n_PM1: Float64Array, w_PM1: Float64Array, ww_PM1: Float64Array, usual_E: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """(share, variance of the share over n blocks) [P,M,E]; NaN with fewer than two blocks."""
    c, cc, cw = np.split(sums_PMX, 3, axis=-1)
    share = ratio(c, w_PM1)
    squares = np.maximum(cc - 2 * share * cw + share**2 * ww_PM1, 0.0)
    variance = ratio(n_PM1 * squares, (n_PM1 - 1) * w_PM1**2)
    return share, np.where(n_PM1 > 1, np.maximum(variance, ratio(usual_E, w_PM1)), np.nan)


def _usual_variance(counts_NE: Int64Array, tokens_N: Float64Array) -> Float64Array:
    """[E] the least variance of a share times its tokens, whatever the labels.

    A share that is the same in all few sources of a domain shows no variance by accident. The experts of the layer tell
    on the whole how much more sources differ than so many independent tokens would (a design effect, the median).
    """
    share_E = counts_NE.sum(axis=0) / tokens_N.sum()
    independent_E = np.clip(share_E * (1 - share_E), 0.0, None)
    N = len(tokens_N)
    squares_E = ((counts_NE - share_E * tokens_N[:, None]) ** 2).sum(axis=0)
    effect_E = ratio(N * squares_E, (N - 1) * tokens_N.sum() * independent_E)
    some = independent_E > 0
    effect = float(np.median(effect_E[some])) if some.any() else 0.0
    usual_E: Float64Array = independent_E * effect
    return usual_E
