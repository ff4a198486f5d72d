"""Tokens that keep their document, source and domain, for what is scored or traced. Axes: N tokens."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_core.data.document import Document
from moe_core.data.tokenizer import TextTokenizer
from moe_core.progress import Progress, silent

MIN_DOCUMENTS = 8
"""Documents a selection spans at least: tokens of one document are alike, so certainty is counted in documents."""

ENCODED_TOGETHER = 2**19
"""Characters that are tokenised at a time: the tokenizer's own results take some hundred bytes each."""
MOST_TOGETHER = 4096
"""Documents, or parts of long ones, that are tokenised at a time."""
COUNTED_TOGETHER = 2**20
"""Tokens that are counted at a time."""


@dataclass(frozen=True)
class TokenDataset:
    """Documents one after the other, each as [end-of-text] + its tokens; without it for a model that has none."""

    token_ids: NDArray[np.int32]
    """[N]"""
    document_ids: NDArray[np.int32]
    """[N]: index of the document in the list the data set was built from."""
    source_ids: NDArray[np.int32]
    """[N]: number of the source the document is from, no number twice; one without a source is its own."""
    domain_ids: NDArray[np.int16]
    """[N]: index into `domains`."""
    positions: NDArray[np.int32]
    """[N]: place in the document; 0 is the end-of-text before its first token, which nothing predicts."""
    domains: tuple[str, ...]
    domain_bytes: NDArray[np.int64]
    """[len(domains)]: UTF-8 bytes of the text in each domain."""
    token_bytes: NDArray[np.int32] | None = None
    """[N]: UTF-8 bytes each token stands for. `build` always sets it; `select` needs it to count what a cut leaves."""

    def __len__(self) -> int:
        """N, end-of-text prefixes included."""
        return len(self.token_ids)

    @classmethod
    def build(
        cls,
        documents: Sequence[Document],
        tokenizer: TextTokenizer,
        domains: Sequence[str],
        *,
        progress: Progress | None = None,
    ) -> TokenDataset:
        """Tokenise `documents`; every domain of theirs must be among `domains`, whose order gives the domain ids."""
        index_of = {domain: i for i, domain in enumerate(domains)}
        token_ids, lengths = encode_documents(documents, tokenizer, progress or silent)
        domain_of = np.array([index_of[document.domain] for document in documents], dtype=np.int16)
        source_of = number_sources(documents)
        starts = (np.cumsum(lengths) - lengths).astype(np.int32)
        domain_ids = np.repeat(domain_of, lengths)
        bytes_of = np.zeros(tokenizer.vocab_size, dtype=np.int32)
        for token_id in np.flatnonzero(count_tokens(token_ids, tokenizer.vocab_size)):
            bytes_of[token_id] = len(tokenizer.token_bytes(int(token_id)))
        token_bytes = bytes_of[token_ids]
        return cls(
            token_ids=token_ids,
            document_ids=np.repeat(np.arange(len(documents), dtype=np.int32), lengths),
            source_ids=np.repeat(source_of, lengths),
            domain_ids=domain_ids,
            positions=np.arange(len(token_ids), dtype=np.int32) - np.repeat(starts, lengths),
            domains=tuple(domains),
            domain_bytes=_sum_by_domain(token_bytes, domain_ids, len(domains)),
            token_bytes=token_bytes,
        )

    def select(self, token_limit_per_domain: int, seed: int) -> TokenDataset:
        """At most so many tokens of each domain (end-of-text prefixes counted), from documents in a seeded order.

        A domain that fits is taken whole. Else MIN_DOCUMENTS (or all there are) share the limit, of as many sources as
        possible, long ones cut to their beginnings, and more follow as long as there is room. A rest of one end-of-text
        alone is left out.
        """
        if self.token_bytes is None:
            raise ValueError("select needs token_bytes; make the data set with TokenDataset.build")
        starts, ends = self.document_bounds()
        chosen: list[NDArray[np.int64]] = []
        for domain in range(len(self.domains)):
            documents = np.flatnonzero(self.domain_ids[starts] == domain)
            rest = token_limit_per_domain
            sharing = 1 if (ends - starts)[documents].sum() <= rest else min(MIN_DOCUMENTS, len(documents))
            order = np.random.default_rng([seed, domain]).permutation(documents)
            # A second document of a source comes after the first of every source.
            order = order[np.argsort(_earlier_occurrences(self.source_ids[starts[order]]), kind="stable")]
            for place, document in enumerate(order):
                part = max(2, -(-rest // max(1, sharing - place)))
                length = min(rest, part, int(ends[document] - starts[document]))
                if length < 2:
                    break
                chosen.append(np.arange(starts[document], starts[document] + length))
                rest -= length
        index = np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.int64)
        token_bytes, domain_ids = self.token_bytes[index], self.domain_ids[index]
        return TokenDataset(
            token_ids=self.token_ids[index],
            document_ids=self.document_ids[index],
            source_ids=self.source_ids[index],
            domain_ids=domain_ids,
            positions=self.positions[index],
            domains=self.domains,
            domain_bytes=_sum_by_domain(token_bytes, domain_ids, len(self.domains)),
            token_bytes=token_bytes,
        )

    def document_bounds(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First index and one past the last index of every document, in order."""
        starts = np.flatnonzero(self.positions == 0)
        return starts, np.append(starts, len(self))[1:]


def _earlier_occurrences(values: NDArray[np.int32]) -> NDArray[np.int64]:
    """How often each value has occurred before it."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    result = np.empty(len(values), dtype=np.int64)
    result[order] = np.arange(len(values)) - np.searchsorted(ordered, ordered, side="left")
    return result


def number_sources(documents: Sequence[Document]) -> NDArray[np.int32]:
    """[len(documents)]: one number for each source of each domain, in the order in which they occur."""
    numbers: dict[tuple[str, str] | int, int] = {}
    keys = ((one.domain, one.source) if one.source else place for place, one in enumerate(documents))
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int32)


def encode_documents(
    documents: Sequence[Document], tokenizer: TextTokenizer, report: Progress
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """[N] the ids of all documents, each after its end-of-text, and [len(documents)] how many each has.

    Texts go to the tokenizer in parts, by characters: neither many documents nor a long one takes much memory at once.
    """
    before = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    lengths = np.zeros(len(documents), dtype=np.int64)
    chunks: list[NDArray[np.int32]] = []
    texts: list[str] = []
    places: list[tuple[int, bool]] = []
    characters = 0

    def encode_collected() -> None:
        nonlocal characters
        ids = array("i")
        for (number, is_first), encoded in zip(places, tokenizer.encode_batch(texts), strict=True):
            ids.extend(before if is_first else ())
            ids.extend(encoded)
            lengths[number] += len(encoded) + (len(before) if is_first else 0)
        chunks.append(np.array(ids, dtype=np.int32))
        report("tokenising", places[-1][0], len(documents))
        texts.clear()
        places.clear()
        characters = 0

    for number, document in enumerate(documents):
        for part_number, part in enumerate(tokenizer.parts(document.text)):
            texts.append(part)
            places.append((number, part_number == 0))
            characters += len(part)
            if characters >= ENCODED_TOGETHER or len(texts) >= MOST_TOGETHER:
                encode_collected()
    if texts:
        encode_collected()
    return np.concatenate([*chunks, np.zeros(0, dtype=np.int32)]), lengths


def count_tokens(token_ids: NDArray[np.int32], vocab_size: int) -> NDArray[np.int64]:
    """[V]: how often each id occurs."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(token_ids), COUNTED_TOGETHER):
        counts += np.bincount(token_ids[start : start + COUNTED_TOGETHER], minlength=vocab_size)
    return counts


def _sum_by_domain(values: NDArray[np.int32], domain_ids: NDArray[np.int16], domains: int) -> NDArray[np.int64]:
    sums = np.zeros(domains, dtype=np.int64)
    for start in range(0, len(values), COUNTED_TOGETHER):
        part = slice(start, start + COUNTED_TOGETHER)
        sums += np.bincount(domain_ids[part], weights=values[part], minlength=domains).astype(np.int64)
    return sums
