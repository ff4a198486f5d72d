"""From passages of text to what the token view shows: fit them to the view's limit, trace them, pack the arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moe_core.routing.token_arrays import TokenArrays

if TYPE_CHECKING:
    from moe_core.data.document import Document
    from moe_core.data.tokenizer import TextTokenizer
    from moe_core.inference.protocol import LanguageModel, Loaded
    from moe_core.routing import RoutingTrace

TOKEN_LIMIT = 2_000
"""Tokens shown at most: the browser keeps one element for each."""
_CHARACTERS_PER_TOKEN = 20  # far more than any text needs; bounds the work on a pasted megabyte


@dataclass(frozen=True)
class Passage:
    """A piece of text and the domain it is from (a name of our own for text that was typed)."""

    domain: str
    text: str


@dataclass(frozen=True, eq=False)
class TracedPassages:
    """The passages' routing, T tokens in all; each begins with an end-of-text token, where the model has one."""

    trace: RoutingTrace
    losses: npt.NDArray[np.float32]
    """[T] nats, NaN at the start of each passage."""
    ranks: npt.NDArray[np.int32]
    """[T], 0 at the start of each passage."""
    tokens: tuple[bytes | None, ...]
    """[T] UTF-8 bytes of each token; None for that end-of-text."""
    characters: int
    """Characters traced; less than were given where the text was cut."""


def fit(text: str, tokenizer: TextTokenizer, tokens: int = TOKEN_LIMIT) -> str:
    """The beginning of `text` that is at most `tokens` tokens long; all of it where it is short enough."""
    head = text[: tokens * _CHARACTERS_PER_TOKEN]
    token_ids = tokenizer.encode(head)
    if head == text and len(token_ids) <= tokens:
        return text
    # A cut within a character loses its first bytes only.
    return b"".join(tokenizer.token_bytes(i) for i in token_ids[:tokens]).decode("utf-8", "ignore")


def opening_words(documents: Sequence[Document]) -> str:
    """The beginning of the first document, as a prompt that the model can make something of; "" without one."""
    return " ".join(documents[0].text.split(" ")[:8]) if documents else ""


def examples(documents: Sequence[Document], domains: Sequence[str], number: int, each: int = 1) -> list[Passage]:
    """`each` held-out documents of every domain in `domains`, in that order; the next ones with the next `number`."""
    passages = []
    for domain in domains:
        own = [document for document in documents if document.domain == domain]
        passages += [Passage(domain, own[(number * each + i) % len(own)].text) for i in range(min(each, len(own)))]
    return passages


def trace_passages(
    loaded: Loaded | LanguageModel, passages: Sequence[Passage], limit: int = TOKEN_LIMIT
) -> TracedPassages:
    """Send each passage through the model alone; each is cut to its part of `limit` tokens."""
    from moe_core.inference.tracing import trace_text
    from moe_core.routing.trace.joining import concatenate

    share = max(limit // max(len(passages), 1) - 1, 1)  # one is the end-of-text before it
    traced = []
    characters = 0
    for number, passage in enumerate(passages):
        text = fit(passage.text, loaded.tokenizer, share)
        characters += len(text)
        one = trace_text(loaded, text, domain=passage.domain)
        documents = np.full(one.trace.num_tokens, number, dtype=np.int32)
        traced.append(replace(one, trace=replace(one.trace, document_ids=documents, source_ids=documents)))
    trace = concatenate([one.trace for one in traced])
    token_bytes = {int(i): loaded.tokenizer.token_bytes(int(i)) for i in np.unique(trace.token_ids)}
    end_of_text = loaded.tokenizer.end_of_text
    return TracedPassages(
        trace=trace,
        losses=np.concatenate([one.losses for one in traced]),
        ranks=np.concatenate([one.ranks for one in traced]),
        tokens=tuple(None if i == end_of_text else token_bytes[int(i)] for i in trace.token_ids),
        characters=characters,
    )


def arrays_of(traced: TracedPassages) -> TokenArrays:
    """The traced passages as the token view takes them."""
    from moe_core.routing.measures.decisions import token_entropy

    trace = traced.trace
    return TokenArrays(
        tokens=traced.tokens,
        layers=trace.layers,
        num_experts=trace.num_experts,
        indices=trace.router_indices,
        scores=trace.router_scores,
        entropies=np.stack([token_entropy(trace, layer) for layer in trace.layers]),
        losses=traced.losses,
        ranks=traced.ranks,
        domain_ids=trace.domain_ids,
        domains=trace.domains,
        starts=np.flatnonzero(np.diff(trace.document_ids, prepend=-1)).tolist(),
    )
