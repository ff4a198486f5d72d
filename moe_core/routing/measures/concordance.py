"""Keyword in context: the places where an expert was chosen, with the words around them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe_core.errors import UsageError
from moe_core.routing.measures.vocabulary import check_expert
from moe_core.routing.trace.trace import RoutingTrace
from moe_core.routing.trace.types import Float64Array, Int64Array


@dataclass(frozen=True)
class Context:
    """One token that chose the expert, and its neighbours in the text."""

    document_id: int
    position: int
    """Place of the token within its document."""
    domain: str
    before: tuple[str, ...]
    """Texts of the tokens before it, in reading order; fewer at the beginning of a document."""
    token: str
    after: tuple[str, ...]
    score: float
    """Combine weight that the token gave the expert."""


def contexts(
    trace: RoutingTrace, layer: int, expert: int, *, limit: int = 20, window: int = 8, seed: int = 0
) -> list[Context]:
    """Where an expert was chosen: `limit` of its tokens at random, each with up to `window` tokens on either side.

    A sample, not the strongest, so that it shows what the expert mostly does; in the order of their score, largest
    first. Token texts are untrusted: escape them where they are shown. Neighbours are of the same document at
    consecutive positions; a gap ends the context. Empty for an expert without tokens.
    Raises TraceError for a layer or expert that is not there, UsageError for a limit below 1 or a window below 0.
    """
    found, scores = tokens_of_expert(trace, layer, expert)
    if limit < 1 or window < 0:
        raise UsageError(f"limit is {limit} and window {window}; expected at least 1 and at least 0")
    if len(found) > limit:
        drawn = np.sort(np.random.default_rng(seed).choice(len(found), limit, replace=False))
        found, scores = found[drawn], scores[drawn]
    order = np.argsort(-scores, kind="stable")
    return contexts_of_tokens(trace, found[order], scores[order], window=window)


def tokens_of_expert(trace: RoutingTrace, layer: int, expert: int) -> tuple[Int64Array, Float64Array]:
    """[N] places in the trace of the tokens that chose the expert, ascending, and [N] the combine weights they gave it.

    Raises TraceError for a layer or expert that is not there.
    """
    row = trace.layer_position(layer)
    check_expert(trace, expert)
    chosen_TK = trace.router_indices[row] == expert
    found = np.flatnonzero(chosen_TK.any(axis=1))
    scores = np.where(chosen_TK[found], trace.router_scores[row][found], -np.inf).max(axis=1, initial=-np.inf)
    return found, scores.astype(np.float64)


def contexts_of_tokens(
    trace: RoutingTrace, tokens: Int64Array, scores: Float64Array, *, window: int = 8
) -> list[Context]:
    """Each of these tokens with up to `window` tokens on either side, in the order given.

    `tokens`: [N] places in the trace; `scores`: [N] their combine weights. Raises UsageError for a window below 0.
    """
    if window < 0:
        raise UsageError(f"window is {window}; expected at least 0")
    place_T = reading_places(trace)
    order = np.argsort(place_T, kind="stable")
    ordered = place_T[order]
    return [
        Context(
            document_id=int(trace.document_ids[i]),
            position=int(trace.positions[i]),
            domain=trace.domains[int(trace.domain_ids[i])],
            before=_neighbours(trace, order, ordered, int(place_T[i]), -1, window)[::-1],
            token=trace.token_text(i),
            after=_neighbours(trace, order, ordered, int(place_T[i]), 1, window),
            score=float(score),
        )
        for i, score in zip(tokens.tolist(), scores.tolist(), strict=True)
    ]


def reading_places(trace: RoutingTrace) -> Int64Array:
    """[T] numbers that ascend in reading order by one within a text; another text's are far from them."""
    places: Int64Array = trace.document_ids.astype(np.int64) * 2**32 + trace.positions
    return places


def _neighbours(
    trace: RoutingTrace, order: Int64Array, ordered: Int64Array, place: int, step: int, window: int
) -> tuple[str, ...]:
    """Texts at the places after (step 1) or before (step -1) `place`, nearest first, up to the first gap."""
    texts = []
    for distance in range(1, window + 1):
        wanted = place + step * distance
        at = int(np.searchsorted(ordered, wanted))
        if at == len(ordered) or ordered[at] != wanted:
            break
        texts.append(trace.token_text(int(order[at])))
    return tuple(texts)
