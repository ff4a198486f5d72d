"""Does a flip in one layer make one in the next more likely, beyond what close choices flip anyway?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe_core.routing.measures.comparison import check_same_experts, check_same_tokens, flipped_tokens
from moe_core.routing.measures.decisions import says_how_decided, token_last_weight, token_logit_lead
from moe_core.routing.measures.flip_margins import told_of
from moe_core.routing.measures.term import Term
from moe_core.routing.statistics.bootstrap import percentile_interval, resampled_totals, source_blocks
from moe_core.routing.statistics.multiple_comparisons import SIGNIFICANCE
from moe_core.routing.statistics.sign_flips import MIN_SOURCES, flipped_sums, sign_patterns
from moe_core.routing.trace.shares import ratio
from moe_core.routing.trace.trace import RoutingTrace
from moe_core.routing.trace.types import BoolArray, Float64Array, Int64Array
from moe_core.words import count_of, number, p_value, percent, signed_two_digits

FLIPS_PER_STRATUM = 20
"""Tokens are held against others of like margin; the strata are as fine as so many flips in each allow."""
MOST_STRATA = 50
OTHER_CLASSES = 4
"""Of the other layer's margin."""
SIGN_DRAWS = 2000


@dataclass(frozen=True)
class FlipsCarriedOn:
    """Of the tokens that flipped in one layer, those that flip in the next one too."""

    flips: int
    """Tokens that flipped in the lower layer."""
    rate: float
    """0..1, of these that flip in the next layer; NaN without flips."""
    chance: float
    """0..1, the same if flips of the two layers had nothing in common but the margins of the upper one."""
    low: float
    high: float
    """95 % bootstrap interval of rate - chance over sources; NaN with fewer than two."""
    p_value: float
    """Two-sided, by flipping the signs of sources; NaN with fewer than two."""
    sources: int
    """With a token that flipped in the lower layer."""


@dataclass(frozen=True)
class Accumulation:
    """How flips carry on, over all pairs of neighbouring layers and for each."""

    whole: FlipsCarriedOn
    layers: tuple[tuple[int, int, FlipsCarriedOn], ...]
    """(layer, next layer, its part)."""
    keeps_margins: bool
    """Whether the chance level knows how close the upper choice was; else only how often it flips."""


def flip_accumulation(a: RoutingTrace, b: RoutingTrace, seed: int = 0) -> Accumulation | None:
    """Are flips of a layer followed by flips in the next? None of a single layer.

    rate = P(flip in l+1 | flip in l). chance is the same if the two had nothing in common but how close the choices
    were: a close one flips easily, whatever happened below, and a token that is difficult in one layer often is in the
    next. rate - chance = mean over the flips in l of (flip in l - expected there) (flip in l+1 - expected there), each
    expected as of tokens of like margin in both layers (generalised covariance measure, 1804.07203). A margin is here
    the lead in logits, which is what noise has to overcome, else the weight of the last choice. A token whose state is
    disturbed more flips more in both layers, which is part of what is found: that the first flip caused the second, an
    intervention alone can tell.
    Raises TraceError where tokens, layers or experts differ.
    """
    check_same_tokens(a, b)
    check_same_experts(a, b)
    if a.num_layers < 2:
        return None
    rng = np.random.default_rng(seed)
    block_T, N = source_blocks(a.source_ids, rng)
    flipped_LT = np.stack([flipped_tokens(a, b, row) for row in range(a.num_layers)])
    (told, _), sums = told_of(a, b), []
    margins = [_margin(told, layer) for layer in a.layers]
    keeps = not all(np.isnan(margin_T).all() for margin_T in margins)
    for row in range(a.num_layers - 1):
        pair = slice(row, row + 2)
        sums.append(_PairSums.of(flipped_LT[pair], margins[pair], block_T, N))
    layers = tuple(
        (a.layers[row], a.layers[row + 1], own.carried_on(np.random.default_rng([seed, row])))
        for row, own in enumerate(sums)
    )
    return Accumulation(_PairSums.summed(sums).carried_on(rng), layers, keeps)


@dataclass(frozen=True, eq=False)
class _PairSums:
    """Of two neighbouring layers, by N blocks of tokens."""

    lower: Int64Array
    """[N] tokens that flipped below."""
    both: Int64Array
    """[N] of these, above too."""
    residual: Float64Array
    """[N] what both flip more than chance."""

    @classmethod
    def of(cls, flipped_2T: BoolArray, margins: list[Float64Array], block_T: Int64Array, N: int) -> _PairSums:
        lower_T, upper_T = flipped_2T
        away_T = _unexpected(lower_T, *margins) * _unexpected(upper_T, *margins[::-1])
        return cls(
            np.bincount(block_T[lower_T], minlength=N),
            np.bincount(block_T[lower_T & upper_T], minlength=N),
            np.bincount(block_T, away_T, minlength=N).astype(np.float64),
        )

    @classmethod
    def summed(cls, parts: list[_PairSums]) -> _PairSums:
        return cls(
            np.sum([one.lower for one in parts], axis=0),
            np.sum([one.both for one in parts], axis=0),
            np.sum([one.residual for one in parts], axis=0),
        )

    def carried_on(self, rng: np.random.Generator) -> FlipsCarriedOn:
        flips, sources = int(self.lower.sum()), int((self.lower > 0).sum())
        rate, excess = float(ratio(self.both.sum(), flips)), float(ratio(self.residual.sum(), flips))
        low = high = p = float("nan")
        N = len(self.lower)
        if N > 1 and flips:
            totals_R2 = resampled_totals(np.stack([self.residual, self.lower], axis=1), rng)
            ends = percentile_interval(excess, ratio(totals_R2[:, 0], totals_R2[:, 1])[:, None], N, N - 1)
            low, high = (float(end[0]) for end in ends)
            own_U = self.residual[np.abs(self.residual) > 1e-12]
            if len(own_U) > 1:
                sums_P = np.abs(flipped_sums(own_U[:, None], sign_patterns(len(own_U), SIGN_DRAWS, rng))[:, 0])
                p = float((sums_P >= sums_P[0] - 1e-12).mean())
        return FlipsCarriedOn(flips, rate, rate - excess, low, high, p, sources)


def _margin(trace: RoutingTrace, layer: int) -> Float64Array:
    """[T] how hard the choice is to change, as far as the trace tells it; NaN where it says nothing."""
    lead_T = token_logit_lead(trace, layer)
    if np.isnan(lead_T).all() and says_how_decided(trace):
        return token_last_weight(trace, layer)
    return lead_T


def _unexpected(flipped_T: BoolArray, own_T: Float64Array, other_T: Float64Array) -> Float64Array:
    """[T] flipped (1 or 0) less the share of the tokens of like margin that did: their own finely, the other layer's in
    a few classes."""
    stratum_T = _classes(other_T) * (MOST_STRATA + 2) + _strata(own_T, flipped_T)
    _, stratum_T = np.unique(stratum_T, return_inverse=True)
    share_S = ratio(np.bincount(stratum_T, flipped_T), np.bincount(stratum_T))
    away_T: Float64Array = flipped_T - share_S[stratum_T]
    return away_T


def _classes(margin_T: Float64Array) -> Int64Array:
    """[T] which of OTHER_CLASSES of equally many tokens; tokens of unknown margin are in the first."""
    known = margin_T[~np.isnan(margin_T)]
    if not len(known):
        return np.zeros(len(margin_T), dtype=np.int64)
    edges = np.unique(np.quantile(known, np.arange(1, OTHER_CLASSES) / OTHER_CLASSES))
    return np.where(np.isnan(margin_T), 0, np.searchsorted(edges, margin_T, side="right")).astype(np.int64)


def _strata(margin_T: Float64Array, flipped_T: BoolArray) -> Int64Array:
    """[T] stratum of like margin; each has about as many flips, so that they are narrow where choices are close. Tokens
    of unknown margin are a stratum of their own."""
    known_T = ~np.isnan(margin_T)
    flips = margin_T[known_T & flipped_T]
    count = int(min(MOST_STRATA, len(flips) // FLIPS_PER_STRATUM))
    stratum_T = np.zeros(len(margin_T), dtype=np.int64)
    if count < 2:
        return stratum_T
    edges = np.unique(np.quantile(flips, np.arange(1, count) / count))
    stratum_T[known_T] = 1 + np.searchsorted(edges, margin_T[known_T], side="right")
    return stratum_T


def accumulation_verdict(found: Accumulation | None) -> str:
    """Do flips carry on from layer to layer? The rate, its chance level and what can be concluded."""
    if found is None:
        return "One layer: whether flips carry on from layer to layer cannot be told."
    own = found.whole
    if not own.flips:
        return "No flip below the last layer: there is nothing that could carry on."
    beside = "close choices flip anyway" if found.keeps_margins else "the layers flip on average"
    rate, chance = percent(own.rate), percent(own.chance)
    size = f"{rate} of the tokens that flip in a layer flip in the next too, {chance} as {beside}"
    if own.sources < MIN_SOURCES or np.isnan(own.p_value):
        return (
            f"Whether flips carry on cannot be told: {count_of(own.flips, 'flip')} in "
            f"{count_of(own.sources, 'source')} are too few ({size})."
        )
    low, high = (signed_two_digits(100 * end) for end in (own.low, own.high))
    certain = f"95 % interval of the difference {low} to {high} points"
    if own.p_value > SIGNIFICANCE or own.low <= 0 <= own.high:
        certain = f"{certain}, {p_value(own.p_value)}"
        return f"That flips carry on to the next layer cannot be told from chance: {size} ({certain})."
    if own.rate < own.chance:
        return f"Flips carry on less than close choices flip anyway: {size} ({certain}, {p_value(own.p_value)})."
    times = f"{number(own.rate / own.chance)} times as often" if own.chance > 0 else "where none would"
    return f"Flips accumulate: {size}, {times} ({certain}, {p_value(own.p_value)})."


ACCUMULATION_TERMS = (
    Term(
        "flips that carry on",
        "How many of the tokens that flip in one layer flip in the next one too.",
        "P(flip in l + 1 | flip in l)",
        "the same if only the margins of both layers mattered",
        "1804.07203",
    ),
)
