"""What a split is decided by, 26 bytes a document: texts themselves may be more than fit into memory.

Sources and texts are known by 64 bits of their SHA-256. Among ten million, two are alike with a probability of 3 in a
million; such sources would share a split, and of such texts one would not be scored.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Collection, Iterable

import numpy as np
from numpy.typing import NDArray

from moe_core.data.document import Document


class DocumentFacts:
    """Domain, source, text and size of documents, in order. Sources are ranked by `seed`."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.domains: list[str] = []
        """In the order in which they occur; what `domain_ids` index."""
        self._ids: dict[str, int] = {}
        self._domain_ids, self._sources, self._texts, self._bytes = array("h"), array("Q"), array("Q"), array("q")

    def add(self, document: Document) -> None:
        """The next document."""
        number = self._ids.setdefault(document.domain, len(self.domains))
        if number == len(self.domains):
            self.domains.append(document.domain)
        content = document.text.encode()
        self._domain_ids.append(number)
        self._sources.append(seeded_rank(self._seed, document.source))
        self._texts.append(_digits(content))
        self._bytes.append(len(content))

    def rename(self, domains: Collection[str], source: str, names: Iterable[str]) -> None:
        """Give the documents of `source` in `domains`, in order, the sources `names`."""
        ids = [self._ids[domain] for domain in domains]
        sources = self.sources
        places = np.flatnonzero((sources == seeded_rank(self._seed, source)) & np.isin(self.domain_ids, ids))
        rank_of: dict[str, int] = {}
        for place, name in zip(places, names, strict=True):
            if name not in rank_of:
                rank_of[name] = seeded_rank(self._seed, name)
            sources[place] = rank_of[name]

    def __len__(self) -> int:
        """Documents."""
        return len(self._bytes)

    @property
    def domain_ids(self) -> NDArray[np.int16]:
        """[documents]"""
        return np.frombuffer(self._domain_ids, dtype=np.int16)

    @property
    def sources(self) -> NDArray[np.uint64]:
        """[documents]: `seeded_rank` of their sources."""
        return np.frombuffer(self._sources, dtype=np.uint64)

    @property
    def texts(self) -> NDArray[np.uint64]:
        """[documents]: the same number for the same text."""
        return np.frombuffer(self._texts, dtype=np.uint64)

    @property
    def bytes(self) -> NDArray[np.int64]:
        """[documents]: of the text in UTF-8."""
        return np.frombuffer(self._bytes, dtype=np.int64)


def seeded_rank(seed: int, source: str) -> int:
    """A seeded order that does not depend on how many other sources there are."""
    return _digits(f"{seed}\n{source}".encode())


def _digits(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
