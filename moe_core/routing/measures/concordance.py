"""Keyword in context: the places where an expert was chosen, with the words around them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe_core.errors import UsageError
from moe_core.routing.measures.vocabulary import check_expert
from moe_core.routing.trace.trace import RoutingTrace
from moe_core.routing.trace.types import Int64Array


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
    row = trace.layer_position(layer)
    check_expert(trace, expert)
    if limit < 1 or window < 0:
        raise UsageError(f"limit is {limit} and window {window}; expected at least 1 and at least 0")
    chosen_TK = trace.router_indices[row] == expert
    found = np.flatnonzero(chosen_TK.any(axis=1))
    if len(found) > limit:
        found = np.sort(np.random.default_rng(seed).choice(found, limit, replace=False))
    scores = np.where(chosen_TK[found], trace.router_scores[row][found], -np.inf).max(axis=1, initial=-np.inf)
    place_T = trace.document_ids.astype(np.int64) * 2**32 + trace.positions
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
        for i, score in sorted(zip(found.tolist(), scores.tolist(), strict=True), key=lambda pair: -pair[1])
    ]


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
