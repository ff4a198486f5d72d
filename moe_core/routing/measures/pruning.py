"""What a model loses when experts are taken out of it, in one order or another, and when tokens get more or fewer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from moe_core.routing.measures.term import Term
from moe_core.routing.statistics.intervals import p_of_intervals
from moe_core.routing.statistics.multiple_comparisons import SIGNIFICANCE, adjust
from moe_core.words import listed, number, signed

TOLERANCE_NATS = 0.02
"""A rise of loss that someone who prunes puts up with: 2 % of perplexity."""
BY = {"reap": "by REAP", "load": "by load", "effect": "by causal effect", "random": "at random"}


@dataclass(frozen=True)
class PruningPoint:
    """The change of loss on one kind of text when so many experts of each layer are gone."""

    by: str
    """A key of BY: in which order they went."""
    removed: int
    """Experts gone from each layer."""
    domain: str
    """"all" or a domain."""
    tokens: int
    delta_nats: float
    """Mean change of loss in nats per token; of several random orders their mean."""
    low: float
    high: float
    """Its 95 % interval over sources of text; NaN with fewer than two."""
    lowest: float
    highest: float
    """The least and the largest change over the random orders; the change itself of any other."""


@dataclass(frozen=True)
class PruningPair:
    """Two orders held against each other on the same tokens, all text."""

    by: str
    other: str
    removed: int
    delta_nats: float
    """Loss by `by` less loss by `other`, in nats per token; below 0, `by` loses less."""
    low: float
    high: float
    """Its 95 % interval, paired by source."""
    p_value: float
    """0..1: signs flipped by source; against random orders also how far apart those lie, whichever says less."""
    p_adjusted: float
    """Over all pairs of the curves (Benjamini-Hochberg)."""

    @property
    def is_told_apart(self) -> bool:
        """Whether the difference is more than chance."""
        return self.p_adjusted <= SIGNIFICANCE


@dataclass(frozen=True)
class TopKPoint:
    """The change of loss on one kind of text when every token is sent to so many experts."""

    top_k: int
    domain: str
    tokens: int
    delta_nats: float
    low: float
    high: float


@dataclass(frozen=True)
class PruningCurves:
    """Loss against experts taken out and against experts a token: everything that was measured at once."""

    layers: tuple[int, ...]
    num_experts: int
    """Experts of a layer that compute."""
    top_k: int
    """Experts a token is sent to in the model as it is."""
    orders: int
    """Random orders."""
    loss_nats: float
    """Of the model as it is, on all of the scored text."""
    points: tuple[PruningPoint, ...]
    pairs: tuple[PruningPair, ...]
    top_k_points: tuple[TopKPoint, ...]
    null_experts: int = 0
    """Choices of a layer beside them that compute nothing; they are not taken out, and a token's top_k counts them."""

    @property
    def criteria(self) -> list[str]:
        """Keys of BY, in the order of the curves."""
        return list(dict.fromkeys(point.by for point in self.points))

    @property
    def domains(self) -> list[str]:
        """ "all" and the domains."""
        return list(
            dict.fromkeys([point.domain for point in self.points] + [point.domain for point in self.top_k_points])
        )

    def frame(self) -> pd.DataFrame:
        """The fields of PruningPoint as columns, with `left`, the experts that each layer keeps."""
        frame = pd.DataFrame([asdict(point) for point in self.points])
        return frame.assign(left=self.num_experts - frame["removed"]) if len(frame) else frame

    def top_k_frame(self) -> pd.DataFrame:
        """The fields of TopKPoint as columns."""
        return pd.DataFrame([asdict(point) for point in self.top_k_points])

    def at(self, by: str, domain: str = "all") -> list[PruningPoint]:
        """One curve, from the fewest experts removed on."""
        own = (point for point in self.points if point.by == by and point.domain == domain)
        return sorted(own, key=lambda point: point.removed)


def pruning_verdict(curves: PruningCurves) -> str:
    """How many experts can go by which order, and whether the orders can be told apart."""
    return " ".join(word for word in (*_what_can_go(curves), _about_null(curves)) if word)


def _what_can_go(curves: PruningCurves) -> tuple[str, ...]:
    if not curves.points:
        of = f"every layer has {curves.num_experts}, and a token is sent to {curves.top_k}"
        return (f"No expert can go: {of} of them.",)
    if all(math.isnan(point.high) for point in curves.points if point.domain == "all"):
        return ("How many experts can go cannot be told on text of one source; bring more documents.",)
    return _how_far(curves), _which_is_best(curves)


def _about_null(curves: PruningCurves) -> str:
    if not curves.null_experts:
        return ""
    which = "The null expert stays" if curves.null_experts == 1 else f"The {curves.null_experts} null experts stay"
    return f"{which}, as there is nothing of theirs to take out."


def reach(points: Sequence[PruningPoint], tolerance: float = TOLERANCE_NATS) -> int:
    """The most experts that can go from each layer with the loss surely within `tolerance`: 0 if not even the fewest.

    Surely: the upper end of the 95 % interval stays within it, and so does every random order, there and wherever fewer
    are gone.
    """
    found = 0
    for point in sorted(points, key=lambda point: point.removed):
        if not (point.high <= tolerance and point.highest <= tolerance):
            break
        found = point.removed
    return found


def _how_far(curves: PruningCurves) -> str:
    E = curves.num_experts
    reached: dict[int, list[str]] = {}
    for by in curves.criteria:
        reached.setdefault(reach(curves.at(by)), []).append(by)
    best = max(reached)
    if best == 0:
        fewest = min(point.removed for point in curves.points)
        which = "one expert" if fewest == 1 else f"{fewest} experts"
        return (
            f"By none of these orders does the loss surely stay within {number(TOLERANCE_NATS)} nats with {which} "
            f"fewer in each layer of {E}."
        )
    parts = []
    for count in sorted(reached, reverse=True):
        down = f"down to {E - count} of {E} experts a layer" if count == best else f"down to {E - count}"
        names = listed([BY[by] for by in reached[count]])
        parts.append(f"{names} {down}" if count else f"{names} with not even {_fewest(curves)} fewer")
    text = "; ".join(parts)
    return f"The loss surely stays within {number(TOLERANCE_NATS)} nats {text}."


def _fewest(curves: PruningCurves) -> str:
    fewest = min(point.removed for point in curves.points)
    return "one" if fewest == 1 else str(fewest)


def _which_is_best(curves: PruningCurves) -> str:
    """The orders against each other, with about half of the experts left."""
    if len(curves.criteria) < 2:
        return ""
    counts = sorted({point.removed for point in curves.points})
    half = min(counts, key=lambda count: (abs(count - curves.num_experts / 2), count))
    here = {by: next(point for point in curves.at(by) if point.removed == half) for by in curves.criteria}
    best = min(here.values(), key=lambda point: point.delta_nats)
    apart: list[str] = []
    alike: list[str] = []
    for by, point in here.items():
        if by != best.by:
            words = f"{BY[by]} ({signed(point.delta_nats)})"
            (apart if _told_apart(curves, best.by, by, half) else alike).append(words)
    left = f"With {curves.num_experts - half} of {curves.num_experts} left"
    interval = f"95 % interval {signed(best.low)} to {signed(best.high)}"
    if not apart and not any(pair.is_told_apart for pair in curves.pairs if pair.removed == half):
        sizes = listed([f"{BY[by]} ({signed(point.delta_nats)} nats)" for by, point in here.items()])
        return f"{left}, the orders cannot be told apart: {sizes}."
    text = f"{left}, the loss is lowest {BY[best.by]}, {signed(best.delta_nats)} nats from what it was ({interval})"
    if alike:
        text += f"; {listed(alike)} cannot be told from it"
    more = f"; {listed(apart)} {'is' if len(apart) == 1 else 'are'} surely higher" if apart else ""
    return f"{text}{more}."


def _told_apart(curves: PruningCurves, one: str, other: str, removed: int) -> bool:
    return any(
        pair.is_told_apart for pair in curves.pairs if pair.removed == removed and {pair.by, pair.other} == {one, other}
    )


def top_k_verdict(curves: PruningCurves) -> str:
    """What fewer or more experts for each token do to the loss."""
    total = [point for point in curves.top_k_points if point.domain == "all" and point.top_k != curves.top_k]
    if not total:
        return f"Another number of experts for each token than {curves.top_k} was not measured."
    fewer = [point for point in total if point.top_k < curves.top_k]
    more = [point for point in total if point.top_k > curves.top_k]
    parts = []
    if fewer:
        parts.append(_change_at(max(fewer, key=lambda point: point.top_k)))
    if more:
        best = min(more, key=lambda point: point.delta_nats)
        parts.append(_change_at(best) if _surely_gains(more, best) else f"more than {curves.top_k} surely gains nothing"
                     if min(point.low for point in more) >= -TOLERANCE_NATS
                     else f"whether more than {curves.top_k} gains anything cannot be told")  # fmt: skip
    text = "; ".join(parts)
    beside = f" and {curves.null_experts} null ones" if curves.null_experts else ""
    return (
        f"Each token is sent to {curves.top_k} of {curves.num_experts} experts{beside}. {text[:1].upper()}{text[1:]}."
    )


def _surely_gains(points: Sequence[TopKPoint], best: TopKPoint) -> bool:
    """Whether the loss surely falls at the best of them, which is picked from all (Benjamini-Hochberg)."""
    changes = (np.array([getattr(point, name) for point in points]) for name in ("delta_nats", "low", "high"))
    p_adjusted = adjust(p_of_intervals(*changes))[points.index(best)]
    return bool(best.high < 0 and p_adjusted <= SIGNIFICANCE)


def _change_at(point: TopKPoint) -> str:
    interval = f"95 % interval {signed(point.low)} to {signed(point.high)}"
    if math.isnan(point.low):
        return f"with {point.top_k} the loss changes by {signed(point.delta_nats)} nats, of one source only"
    if point.low <= 0 <= point.high:
        return f"with {point.top_k} the loss is not distinguishable from what it is ({interval})"
    change = "rises" if point.delta_nats > 0 else "falls"
    return f"with {point.top_k} the loss {change} by {number(abs(point.delta_nats))} nats per token ({interval})"


PRUNING_TERMS = (
    Term(
        "pruning curve",
        "How the loss changes as experts go, the least needed first, as many in each layer, in an order made on other "
        "text.",
        "loss with the experts gone and the router choosing again - loss as it is",
        "the band of random orders",
        "2510.13999",
    ),
    Term(
        "top-k curve",
        "How the loss changes when every token is sent to fewer or more experts than the model was made for.",
        "",
        "0",
    ),
)
