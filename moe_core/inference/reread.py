"""The tokens of a routing made ready to be read again by a model: each text from its beginning on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_core.data.tokens import TokenDataset
from moe_core.errors import UsageError
from moe_core.routing import RoutingTrace


@dataclass(frozen=True, eq=False)
class Reread:
    """What can be read again of a routing."""

    dataset: TokenDataset
    """Whole texts; with the prompts that several answers continue before each of them."""
    is_own: NDArray[np.bool_]
    """[N] of its tokens, those of `routing`; the rest are such prompts."""
    routing: RoutingTrace
    """The routing without the documents that were left out."""
    left_out: int
    """Documents whose beginning is missing, or tokens between."""


def reread(routing: RoutingTrace) -> Reread:
    """Put together the texts of a routing whose tokens may be read again.

    A recording counts a prompt that several answers continue with the first of them alone: the others begin behind it,
    and have the first one's document as their source. Raises UsageError where no document is whole.
    """
    starts = np.flatnonzero(np.append(True, np.diff(routing.document_ids) != 0))
    ends = np.append(starts, routing.num_tokens)[1:]
    whole = {int(routing.document_ids[start]): start for start in starts if not routing.positions[start]}
    places: list[NDArray[np.int64]] = []
    owners: list[NDArray[np.bool_]] = []
    documents: list[NDArray[np.int64]] = []
    kept = np.zeros(routing.num_tokens, np.bool_)
    for start, end in zip(starts, ends, strict=True):
        missing, own = int(routing.positions[start]), np.arange(start, end)
        if (np.diff(routing.positions[start:end]) != 1).any():
            continue
        before = _prompt(routing, whole.get(int(routing.source_ids[start])), missing)
        if before is None:
            continue
        kept[start:end] = True
        places += [before, own]
        owners += [np.zeros(missing, np.bool_), np.ones(len(own), np.bool_)]
        documents.append(np.full(missing + len(own), len(documents)))
    if not places:
        raise UsageError(
            "the tokens of this routing cannot be read again: no document is whole from its beginning on; expected a "
            "trace or a recording of whole texts"
        )
    index, document_ids = np.concatenate(places), np.concatenate(documents).astype(np.int32)
    firsts = np.append(True, np.diff(document_ids) != 0)
    begins = np.maximum.accumulate(np.where(firsts, np.arange(len(index)), 0))
    dataset = TokenDataset(
        token_ids=routing.token_ids[index],
        document_ids=document_ids,
        source_ids=routing.source_ids[index],
        domain_ids=routing.domain_ids[index],
        positions=(np.arange(len(index)) - begins).astype(np.int32),
        domains=tuple(routing.domains),
        domain_bytes=np.zeros(len(routing.domains), np.int64),
    )
    return Reread(dataset, np.concatenate(owners), routing.select(kept), len(starts) - len(documents))


def _prompt(routing: RoutingTrace, start: np.int64 | None, tokens: int) -> NDArray[np.int64] | None:
    """Places of the first `tokens` tokens of the document that begins at `start`; None where it has not so many."""
    if not tokens:
        return np.zeros(0, np.int64)
    if start is None or start + tokens > routing.num_tokens:
        return None
    found = np.arange(start, start + tokens)
    is_whole = (routing.document_ids[found] == routing.document_ids[start]).all() and (
        routing.positions[found] == np.arange(tokens)
    ).all()
    return found if is_whole else None
