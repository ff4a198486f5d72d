"""What reading beyond the trained length gave: loss and routing by position, under each way to stretch rotary angles.

What is told of a place in the texts is the whole reading against windows of the trained length, text by text, so that
hard places cancel out. Texts that share a document count as one when intervals are made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from moe_core.config.rope_schemes import RopeScheme
from moe_core.routing.measures.term import Term
from moe_core.routing.statistics.intervals import TAILS, student_interval, t_quantile
from moe_core.routing.statistics.multiple_comparisons import SIGNIFICANCE
from moe_core.routing.trace.shares import mutual_information
from moe_core.words import percent

EIGHTHS = 8
TURNS = 99
"""Of the null; the least p value is .01."""


@dataclass(frozen=True)
class Mean:
    """A mean over groups of texts that share no document, with the 95 % interval of Student's t over them."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class LayerSpan:
    """The routing of one MoE layer at some positions."""

    flips: Mean
    """Share of first choices that are another expert than in the window."""
    entropy: Mean
    """Router entropy H(p) / ln E of the softmax over all experts, 0 = certain .. 1 = uniform."""
    busiest: Mean
    """Load of the expert that has most first choices here, times its even share. The largest of several shares is more
    than each deserves: hold it against places of the same size alone."""
    load: tuple[float, ...]
    """Share of first choices by expert."""


@dataclass(frozen=True)
class Span:
    """Positions `start` to before `end` of all texts."""

    start: int
    end: int
    nats: Mean
    """Loss per token of the whole reading."""
    above_windows: Mean
    """Its loss less that in windows of the trained length; below 0 = the longer context helps."""
    flips: Mean
    """Share of first choices, over all MoE layers, that are another expert than in the window; 0 in a dense model."""
    busiest: float
    """Load of the busiest expert, times its even share, in the MoE layer where that is most; 0 in a dense model."""
    layers: tuple[LayerSpan, ...]
    """Of each MoE layer."""


@dataclass(frozen=True)
class SchemeRead:
    """One scheme on all texts."""

    scheme: RopeScheme
    spans: tuple[Span, ...]
    """The trained length, twice and four times as far."""
    places: tuple[Span, ...]
    """The same positions in quarters of the trained length."""
    flips_above_context: Mean
    """Beyond the trained length: flips of the whole reading less `flips_by_context`, on the same tokens."""
    position_nmi: float
    """I(position; expert) / H(position), position in eighths of a text, first choices, the mean of the MoE layers."""
    position_nmi_chance: float
    """The 95th percentile of the same under `position_test`'s null."""
    position_p: float
    """Share of turns that reach position_nmi, the found one counted in."""


@dataclass(frozen=True)
class LongContext:
    """All schemes on the same weights and texts."""

    trained: int
    texts: int
    groups: int
    """Of texts that share no document: what intervals are made over."""
    documents: int
    tokens: int
    moe_layers: tuple[int, ...]
    flips_by_context: Mean
    """First choices that become another expert when a window begins half its length earlier, over the tokens of the
    first half: what more context does within the trained length."""
    schemes: tuple[SchemeRead, ...]


def mean_of_groups(values_N: NDArray[np.float64], group_N: NDArray[np.int64]) -> Mean:
    """The mean of the groups' means, of at least two groups."""
    sums, counts = np.bincount(group_N, values_N), np.bincount(group_N)
    means = sums[counts > 0] / counts[counts > 0]
    error = float(means.std(ddof=1)) / math.sqrt(len(means))
    return Mean(float(means.mean()), *student_interval(float(means.mean()), error, len(means) - 1))


def position_test(experts: Sequence[NDArray[np.int64]], num_experts: int) -> tuple[float, float, float]:
    """([T, L] first choices of each text) -> position NMI, its level by chance and the p value; 0, 0 and 1 in a dense
    model.

    The null turns each text's choices round by a random distance of its own, which keeps load, texts and runs of equal
    choice. Texts may differ in length.
    """
    if not experts[0].shape[1]:
        return 0.0, 0.0, 1.0
    rng = np.random.default_rng(0)
    longest = max(len(one) for one in experts)
    found = _position_nmi(experts, longest, num_experts)
    by_chance = []
    for _ in range(TURNS):
        turned = [np.roll(one, int(rng.integers(0, len(one))), axis=0) for one in experts]
        by_chance.append(_position_nmi(turned, longest, num_experts))
    reached = sum(value >= found for value in by_chance)
    return found, float(np.quantile(by_chance, 0.95)), (1 + reached) / (1 + TURNS)


def _position_nmi(experts: Sequence[NDArray[np.int64]], longest: int, num_experts: int) -> float:
    L = experts[0].shape[1]
    eighth = np.concatenate([np.arange(len(one)) * EIGHTHS // longest for one in experts])
    layers_L: NDArray[np.int64] = np.arange(L, dtype=np.int64) * EIGHTHS
    flat = (np.add.outer(eighth, layers_L) * num_experts + np.concatenate(experts).clip(0)).ravel()
    counts_LPE = np.bincount(flat, minlength=L * EIGHTHS * num_experts).reshape(L, EIGHTHS, num_experts)
    return float(mutual_information(counts_LPE).mean() / math.log(EIGHTHS))


def best_scheme(found: LongContext) -> SchemeRead:
    """The one that loses least against windows at the furthest positions."""
    return min(found.schemes, key=lambda read: read.spans[-1].above_windows.value)


def reading_verdict(found: LongContext) -> str:
    """Which scheme reads furthest, in words. That one of several helps is said at the level of all together."""
    best = best_scheme(found)
    span = best.spans[-1]
    gap = span.above_windows
    freedom = found.groups - 1
    wider = float(special.stdtrit(freedom, 1 - TAILS[0] / len(found.schemes)) / t_quantile(freedom))
    numbers = f"{gap.value:+.3f} nats a token (95 % interval {gap.low:+.3f} to {gap.high:+.3f})"
    where = f"at positions {span.start} to {span.end - 1}"
    if gap.value + wider * (gap.high - gap.value) < 0:
        helps = f"Text beyond the trained {found.trained} tokens helps {where} under {best.scheme}"
        return f"{helps}: {numbers} against windows."
    if all(read.spans[-1].above_windows.low > 0 for read in found.schemes):
        return (
            f"No scheme reads beyond the trained {found.trained} tokens as well as windows of that length do {where}: "
            f"the nearest, {best.scheme}, loses {numbers}. Train at a longer length, or read in windows."
        )
    return (
        f"Whether text beyond the trained {found.trained} tokens helps cannot be told {where}: {best.scheme}, "
        f"{numbers} against windows, the least of {len(found.schemes)} schemes."
    )


def routing_verdict(found: LongContext) -> str:
    """Whether the routing holds there under the scheme that reads furthest, in words."""
    if not found.moe_layers:
        return "A dense model has no routing."
    best = best_scheme(found)
    more, usual = best.flips_above_context, found.flips_by_context
    flips = percent(max(0.0, usual.value + more.value))
    numbers = (
        f"{flips} of the first choices are another expert than in a window, {percent(usual.value)} are when more "
        f"context comes within the trained length (difference {100 * more.low:+.1f} to {100 * more.high:+.1f} points)"
    )
    if more.low > 0:
        said = f"Routing changes beyond that length under {best.scheme}: {numbers}."
    elif more.high < 0:
        said = f"Routing holds beyond that length under {best.scheme}: {numbers}."
    else:
        said = f"Whether routing changes there under {best.scheme} cannot be told: {numbers}."
    follows = "follow" if best.position_p < SIGNIFICANCE else "are not seen to follow"
    return (
        f"{said} Experts {follows} position: NMI {best.position_nmi:.4f} of at most 1, by chance below "
        f"{best.position_nmi_chance:.4f} in 95 of 100 (p = {best.position_p:.2f})."
    )


def when_not_to_conclude(found: LongContext) -> str:
    """What these figures do not say."""
    few = f" Only {found.groups} groups of texts share no document: intervals are wide." if found.groups < 10 else ""
    return (
        "The texts are documents of one domain set one behind another, as in training. A model can gain little from a "
        "longer context where documents are short, so no gain is no proof that it cannot read further; and weights "
        f"that are trained on under a scheme may do what these cannot.{few}"
    )


TERMS = (
    Term(
        "trained length",
        "Tokens of the windows that a model was trained on; it has seen no position beyond.",
    ),
    Term(
        "RoPE scheme",
        "A rule that stretches rotary angles, so that far positions look like those of training.",
        "",
        "none: the angles as trained",
        "2306.15595; 2309.00071",
    ),
    Term(
        "flips by position",
        "Share of tokens whose first expert is another than when the text is read in windows of the trained length.",
        "mean_t [e_whole(t) != e_window(t)]",
        "what half a window more of context does within the trained length",
    ),
    Term(
        "NMI with position",
        "How much the place in the text tells of the expert.",
        "I(position; expert) / H(position)",
        "each text's choices turned round by a random distance",
    ),
)
