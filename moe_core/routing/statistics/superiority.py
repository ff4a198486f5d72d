"""How often is a value of one kind the smaller of a pair, one of each kind? Over sources, whose tokens are alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from moe_core.routing.statistics.intervals import TAILS, t_quantile, wilson_of_shares
from moe_core.routing.trace.types import BoolArray, Float64Array, Int64Array


@dataclass(frozen=True)
class Superiority:
    """P(a marked value is smaller than another one of its layer), ties counted half."""

    value: float
    """0..1: 0.5 = the marked ones are like the others, 1 = all are smaller than any other; NaN without pairs."""
    low: float
    high: float
    """95 % interval over sources, 0..1; NaN with fewer than two sources."""


@dataclass(frozen=True, eq=False)
class RankedLayer:
    """One layer's values, each ranked among those of the other kind."""

    value: float
    """P(marked < other) in this layer; NaN where it has one kind only."""
    marked: int
    """How many are marked."""
    placement: Float64Array
    """[T] of a marked value the share of the others that are larger, of another one the share of the marked that are
    smaller; 0..1, ties half. NaN where the value is unknown."""
    is_marked: BoolArray
    """[T]"""


def ranked_layer(values_T: Float64Array, marked_T: BoolArray) -> RankedLayer:
    """Rank the known values of one layer. Both [T]; NaN = unknown, left out."""
    known_T = ~np.isnan(values_T)
    own, other = np.sort(values_T[known_T & marked_T]), np.sort(values_T[known_T & ~marked_T])
    placement_T = np.full(len(values_T), np.nan)
    if not len(own) or not len(other):
        return RankedLayer(float("nan"), len(own), placement_T, marked_T)
    placement_T[known_T & marked_T] = 1 - _share_below(other, values_T[known_T & marked_T])
    placement_T[known_T & ~marked_T] = _share_below(own, values_T[known_T & ~marked_T])
    return RankedLayer(float(placement_T[known_T & marked_T].mean()), len(own), placement_T, marked_T)


def superiority(layers: Sequence[RankedLayer], block_T: Int64Array, N: int) -> Superiority:
    """The layers' shares, weighted by how many of each are marked; its interval over N blocks of tokens.

    The variance is that of the blocks' sums of placements (Obuchowski 1997, Biometrics 53: areas under ROC curves of
    clustered data; DeLong 1988 where every block is one token); the interval is Wilson's for as many independent pairs
    as that variance amounts to, with Student's t of N - 1 degrees of freedom.
    """
    told = [layer for layer in layers if not np.isnan(layer.value)]
    total = sum(layer.marked for layer in told)
    if not total:
        return Superiority(float("nan"), float("nan"), float("nan"))
    value = sum(layer.marked * layer.value for layer in told) / total
    residual_N, marked_N = np.zeros(N), np.zeros(N)
    for layer in told:
        away_T = np.nan_to_num(layer.placement - layer.value)
        others = int((~np.isnan(layer.placement) & ~layer.is_marked).sum())
        weight_T = np.where(layer.is_marked, 1 / layer.marked, 1 / others) * (layer.marked / total)
        residual_N += np.bincount(block_T, away_T * weight_T, minlength=N)
        marked_N += np.bincount(block_T[layer.is_marked & ~np.isnan(layer.placement)], minlength=N)
    if N < 2:
        return Superiority(float(value), float("nan"), float("nan"))
    variance = N / (N - 1) * float((residual_N**2).sum())
    # Where every marked value is below all others nothing varies: then each source that has one is one observation.
    pairs = float((marked_N > 0).sum())
    spread = value * (1 - value)
    if variance > 0 and spread > 0:
        pairs = min(float(total), max(spread / variance, 1.0))
    pairs *= float((special.ndtri(TAILS[1]) / t_quantile(N - 1)) ** 2)
    low, high = wilson_of_shares(np.array([value]), np.array([pairs]))
    return Superiority(float(value), float(min(low[0], value)), float(min(max(high[0], value), 1.0)))


def _share_below(ordered_N: Float64Array, values_M: Float64Array) -> Float64Array:
    """[M] the part of `ordered_N` below each value, ties half."""
    below_M = np.searchsorted(ordered_N, values_M, side="left")
    up_to_M = np.searchsorted(ordered_N, values_M, side="right")
    share_M: Float64Array = (below_M + up_to_M) / (2 * len(ordered_N))
    return share_M
