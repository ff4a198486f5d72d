"""Token types and neighbours: what measures of vocabulary, context and persistence have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from moe_core.errors import TraceError, UsageError
from moe_core.routing.trace.kernels import add_grouped_counts
from moe_core.routing.trace.trace import AnyTrace, RoutingTrace, StoredTrace
from moe_core.routing.trace.types import Int64Array

TokenKind = Literal["input", "predicted", "next"]
"""Which token a choice is held against: the one routed, the one the model predicts after it, the one that follows."""

TOGETHER = 2**24
"""Counts that are collected in one reading of the trace (128 MiB)."""
_TABLE = 2**22  # ids below this are looked up in a table; larger ones are searched


def consecutive(trace: RoutingTrace) -> tuple[Int64Array, Int64Array]:
    """(earlier [P], later [P]): the token pairs at consecutive positions of one document, whatever the row order."""
    place_T = trace.document_ids.astype(np.int64) * 2**32 + trace.positions
    order = np.arange(place_T.size)
    if (np.diff(place_T) < 0).any():
        order = np.argsort(place_T, kind="stable")
        place_T = place_T[order]
    follows = np.diff(place_T) == 1
    return order[:-1][follows], order[1:][follows]


def token_ids_of(trace: RoutingTrace, which: TokenKind) -> npt.NDArray[np.int32]:
    """[T] id of each token's token of this kind; -1 = it has none. Raises TraceError where they were not kept."""
    if which == "input":
        return trace.token_ids
    if which == "next":
        earlier, later = consecutive(trace)
        ids = np.full(trace.num_tokens, -1, dtype=np.int32)
        ids[earlier] = trace.token_ids[later]
        return ids
    if trace.predicted_ids is None:
        raise TraceError(
            "this trace has no predicted_ids, which predicted tokens are taken from; trace the text again, "
            'or take which="next" or "input"'
        )
    return trace.predicted_ids


class TokenTypes(NamedTuple):
    """The token types that occur often enough. Axis V."""

    ids: Int64Array
    """[V] ascending."""
    tokens: Int64Array
    """[V] how often each occurs."""
    total: int
    """Tokens of all types, the rare ones too."""

    def label(self, ids_T: npt.NDArray[np.integer[Any]]) -> Int64Array:
        """[T] place of each token's type in `ids`; V for a rare one, -1 for none."""
        labels_T = place_in(self.ids, ids_T)
        labels_T[ids_T < 0] = -1
        return labels_T


def token_types(trace: AnyTrace, which: TokenKind, min_count: int) -> TokenTypes:
    """The types of one kind that occur at least `min_count` times. Raises UsageError for a wrong argument."""
    if which not in get_args(TokenKind):
        raise UsageError(f"which is {which!r}; expected one of {', '.join(get_args(TokenKind))}")
    if min_count < 1:
        raise UsageError(f"min_count is {min_count}; expected 1 or more")

    def tallied() -> tuple[Int64Array, Int64Array]:
        return tally(token_ids_of(part, which) for part in trace.parts())

    ids, tokens = trace.once(("token_types", which), tallied) if isinstance(trace, StoredTrace) else tallied()
    often = tokens >= min_count
    return TokenTypes(ids[often], tokens[often], int(tokens.sum()))


def tally(keys: Iterator[npt.NDArray[np.integer[Any]]]) -> tuple[Int64Array, Int64Array]:
    """(distinct keys ascending, how often each occurs) over all parts; keys below 0 are left out."""
    found, counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    for part in keys:
        if part.size and int(part.max()) < _TABLE:
            table = np.bincount(part + np.intp(1))[1:]
            own = np.flatnonzero(table)
            own_counts = table[own]
        else:
            own, own_counts = np.unique(part[part >= 0].astype(np.int64), return_counts=True)
        both, place = np.unique(np.concatenate([found, own]), return_inverse=True)
        merged = np.zeros(len(both), dtype=np.int64)
        np.add.at(merged, place, np.concatenate([counts, own_counts]))
        found, counts = both, merged
    return found, counts


def place_in(keys_G: Int64Array, keys_T: npt.NDArray[np.integer[Any]]) -> Int64Array:
    """[T] place of each key in the ascending `keys_G`, all >= 0; G where it is not among them."""
    G = len(keys_G)
    if not G:
        return np.zeros(len(keys_T), dtype=np.int64)
    if (size := int(keys_G[-1]) + 1) <= _TABLE:
        table = np.full(size + 1, G, dtype=np.int64)
        table[keys_G] = np.arange(G)
        found_T: Int64Array = table[np.minimum(keys_T, size)]  # a negative key reads the table's end, which is none
        return found_T
    place_T = np.minimum(np.searchsorted(keys_G, keys_T), G - 1)
    return np.where(keys_G[place_T] == keys_T, place_T, G)


def layer_counts(trace: AnyTrace, labels: Callable[[RoutingTrace], Int64Array], size: int) -> Iterator[Int64Array]:
    """Layer by layer [G,E]: assignments of tokens with each of G = `size` labels to each expert.

    As counts.label_counts, but where labels are many only few layers are counted in one reading, so that neither trace
    nor counts (at most TOGETHER of them) need to fit into memory as a whole.
    """
    together = max(1, TOGETHER // (size * trace.num_experts))
    for start in range(0, trace.num_layers, together):
        rows = range(start, min(start + together, trace.num_layers))
        counts_RGE = np.zeros((len(rows), size, trace.num_experts), dtype=np.int64)
        for part in trace.parts():
            add_grouped_counts(counts_RGE, part.router_indices[rows.start : rows.stop], labels(part))
        yield from counts_RGE


def texts_of(trace: AnyTrace, ids: Int64Array) -> npt.NDArray[np.object_]:
    """Printable text of each token id, "#id" where the trace carries none."""
    texts = np.empty(len(ids), dtype=object)
    texts[:] = [trace.vocabulary.get(token_id, f"#{token_id}") for token_id in ids.tolist()]
    return texts
