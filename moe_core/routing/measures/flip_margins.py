"""Where two routings of the same tokens differ: had the choice been close, or was it clear and is now another one?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moe_core.routing.measures.comparison import check_same_experts, check_same_tokens, flipped_tokens
from moe_core.routing.measures.decisions import (
    beside_logits,
    says_how_decided,
    token_boundary,
    token_last_weight,
    token_lead,
)
from moe_core.routing.measures.persistence import first_choice
from moe_core.routing.measures.term import Term
from moe_core.routing.statistics.bootstrap import source_blocks
from moe_core.routing.statistics.sign_flips import MIN_SOURCES
from moe_core.routing.statistics.superiority import Superiority, ranked_layer, superiority
from moe_core.routing.trace.trace import RoutingTrace
from moe_core.routing.trace.types import BoolArray, Float64Array, Int64Array
from moe_core.words import count_of, number, percent

Basis = Literal["boundary", "last weight", "lead", "none"]
"""What a margin is made of. boundary: p_(K) - p_(K+1) of all experts, exact; last weight: the weight of the last
choice, which is the most that it can have been ahead; lead: p_(1) - p_(2); none: nothing is known."""
NEAR_TIES = 0.9
"""Flips are near ties where in so many pairs of a flip and a choice that stayed, with 95 % certainty, the flip was the
closer one. Measured on normal logits of 8 experts, 2 for each token: noise of .01, .03, .1, .3 and 1 of their spread
flips 1, 4, 12, 34 and 72 % of the tokens, and the flip was the closer one in 98, 96, 88, 75 and 61 % of pairs."""
FEWEST_FLIPS = 10
"""Of fewer nothing is concluded."""
OTHER_CHOOSER = 0.01
"""Part of the tokens whose experts are not those of the largest logits, from which it is said."""


@dataclass(frozen=True)
class Quartiles:
    """Of some margins; NaN of none."""

    count: int
    lower: float
    median: float
    upper: float

    @classmethod
    def of(cls, values: Float64Array) -> Quartiles:
        """NaN among the values are left out."""
        known = values[~np.isnan(values)]
        if not len(known):
            return cls(0, np.nan, np.nan, np.nan)
        return cls(len(known), *(float(value) for value in np.quantile(known, (0.25, 0.5, 0.75))))


@dataclass(frozen=True)
class LayerMargins:
    """One layer's margins."""

    layer: int
    tokens: int
    flips: int
    """Tokens whose choice is another one in B, whether their margin is known or not."""
    at_flips: Quartiles
    elsewhere: Quartiles
    closer: Superiority
    """P(a flip had a smaller margin than a choice that stayed), 0..1, 0.5 by chance."""


@dataclass(frozen=True)
class MarginComparison:
    """Margins where choices flipped against margins where they stayed."""

    basis: Basis
    flips: int
    """Over all layers."""
    sources: int
    """Of them with a flip."""
    at_flips: Quartiles
    elsewhere: Quartiles
    closer: Superiority
    """As in LayerMargins, within layers: weighted by each one's flips, so that no layer is held against another."""
    layers: tuple[LayerMargins, ...]


@dataclass(frozen=True)
class FlipMargins:
    """Of the set of experts, and of the first choice alone."""

    of: Literal["A", "B"]
    """Whose router the margins are of."""
    experts: MarginComparison
    """A flip: another set of experts."""
    first: MarginComparison
    """A flip: another first choice."""
    beside_logits: float
    """Part of the tokens, 0..1, whose experts are not those of the largest logits; NaN without logits."""


def flip_margins(a: RoutingTrace, b: RoutingTrace, seed: int = 0) -> FlipMargins:
    """Had the choices that are other ones in B been closer than those that stayed?

    A margin is how far the last chosen expert is ahead of the best one left out, in probability (0..1), as the router
    of A has it; of B where only B kept logits. Without logits it is not known, but is at most the weight of the last
    choice, which is then taken. closer = P(margin of a flip < margin of a choice that stayed) within a layer.
    Raises TraceError where tokens, layers or experts differ.
    """
    check_same_tokens(a, b)
    check_same_experts(a, b)
    told, of = told_of(a, b)
    block_T, N = source_blocks(a.source_ids, np.random.default_rng(seed))
    known = says_how_decided(told)
    last: Basis = "boundary" if _is_complete(told) else "last weight" if known else "none"
    margin_of = {"boundary": token_boundary, "last weight": token_last_weight, "none": _unknown}[last]
    sets_LT = np.stack([flipped_tokens(a, b, row) for row in range(a.num_layers)])
    first_LT = np.stack([first_choice(a, row) != first_choice(b, row) for row in range(a.num_layers)])
    lead: Basis = "lead" if known else "none"
    beside = [beside_logits(told, layer) for layer in told.layers]
    return FlipMargins(
        of,
        _compared(told, last, margin_of, sets_LT, block_T, N),
        _compared(told, lead, token_lead if known else _unknown, first_LT, block_T, N),
        float(np.mean(beside)),
    )


def told_of(a: RoutingTrace, b: RoutingTrace) -> tuple[RoutingTrace, Literal["A", "B"]]:
    """The one whose margins are taken: A, unless B alone tells them or tells more of them."""
    takes_b = not _is_complete(a) and (_is_complete(b) or (says_how_decided(b) and not says_how_decided(a)))
    return (b, "B") if takes_b else (a, "A")


def _is_complete(trace: RoutingTrace) -> bool:
    """Does it hold what a choice was ahead of?"""
    return trace.router_logits is not None and trace.top_k < trace.num_experts


def _unknown(trace: RoutingTrace, layer: int) -> Float64Array:  # noqa: ARG001 - as the other margins
    return np.full(trace.num_tokens, np.nan)


def _compared(
    told: RoutingTrace,
    basis: Basis,
    margin_of: Callable[[RoutingTrace, int], Float64Array],
    flipped_LT: BoolArray,
    block_T: Int64Array,
    N: int,
) -> MarginComparison:
    ranked, layers, at_flips, elsewhere = [], [], [], []
    for layer, flipped_T in zip(told.layers, flipped_LT, strict=True):
        margin_T = margin_of(told, layer)
        own = ranked_layer(margin_T, flipped_T)
        ranked.append(own)
        at_flips.append(margin_T[flipped_T])
        elsewhere.append(margin_T[~flipped_T])
        layers.append(
            LayerMargins(
                layer,
                len(flipped_T),
                int(flipped_T.sum()),
                Quartiles.of(at_flips[-1]),
                Quartiles.of(elsewhere[-1]),
                superiority([own], block_T, N),
            )
        )
    return MarginComparison(
        basis,
        int(flipped_LT.sum()),
        len(np.unique(block_T[flipped_LT.any(axis=0)])),
        Quartiles.of(np.concatenate(at_flips)),
        Quartiles.of(np.concatenate(elsewhere)),
        superiority(ranked, block_T, N),
        tuple(layers),
    )


_MARGIN_WORDS = {
    "boundary": "margin",
    "last weight": "weight of the last choice",
    "lead": "lead of the first choice over the second",
}


def margins_verdict(found: FlipMargins) -> str:
    """Are the flips ties, or real changes? With the size of it, its chance level and its certainty."""
    own = found.experts
    if not own.flips:
        return "No token goes to other experts: there is no flip whose margin could be told."
    if own.basis == "none":
        return (
            f"Whether the {count_of(own.flips, 'flip')} were ties cannot be told: neither routing says how far a "
            "choice was ahead; a trace of ours with logits would."
        )
    text = _sentence(own, found.of)
    if own.basis == "last weight":
        text += (
            " How far the last choice was ahead of the best one left out takes logits, which neither routing kept: at "
            "most its weight."
        )
    if found.beside_logits > OTHER_CHOOSER:
        text += (
            f" Of {percent(found.beside_logits)} of the tokens the experts are not those of the largest logits: "
            "something beside them chose too (a balancing bias, groups, noise), so that a margin is that of the "
            "probabilities alone."
        )
    return text


def _sentence(own: MarginComparison, of: str) -> str:
    what = _MARGIN_WORDS[own.basis] + (" (of B's router)" if of == "B" else "")
    medians = f"median {what} {number(own.at_flips.median)} where it is {number(own.elsewhere.median)} elsewhere"
    too_few = own.flips < FEWEST_FLIPS or own.sources < MIN_SOURCES
    if too_few or np.isnan(own.closer.low):
        return (
            f"Whether the flips are ties cannot be told: {count_of(own.flips, 'flip')} in "
            f"{count_of(own.sources, 'source')} are too few ({medians})."
        )
    pairs = (
        f"in {percent(own.closer.value)} of pairs (95 % interval {percent(own.closer.low)} to "
        f"{percent(own.closer.high)}; 50 % by chance) the flipped choice had been the "
        f"{'weaker' if own.basis == 'last weight' else 'closer'} one"
    )
    return f"{_conclusion(own)}: {medians}; {pairs}."


def _conclusion(own: MarginComparison) -> str:
    if own.basis == "last weight":
        if own.closer.low > 0.5:
            return "The flips are of weaker last choices than the rest"
        if own.closer.high < 0.5:
            return "The flips are of stronger last choices than the rest: no ties"
        return "The last choices of the flips were as strong as elsewhere, as far as can be told"
    if own.closer.low >= NEAR_TIES:
        return "The flips are near ties"
    if own.closer.low > 0.5 and own.closer.high < NEAR_TIES:
        return "The flips were closer choices than the rest, but not only ties"
    if own.closer.low > 0.5:
        return "The flips were closer choices than the rest; whether all are near ties cannot be told"
    if own.closer.high < 0.5:
        return "The flips are no ties: the clearer choices changed"
    return "The flips cannot be told from choices that changed wherever they were: not ties, as far as can be told"


MARGIN_TERMS = (
    Term(
        "margin at a flip",
        "How far the last chosen expert had been ahead of the first one left out, where another routing of the same "
        "token chooses otherwise.",
        "p_(K) - p_(K+1)",
        "as where nothing flipped, if flips fall anywhere; near 0 for ties",
    ),
    Term(
        "closer choice",
        "In how many pairs of a flip and a choice of the same layer that stayed the flip had the smaller margin.",
        "P(margin of a flip < margin of a choice that stayed)",
        "50 %",
        "Obuchowski 1997",
    ),
)
