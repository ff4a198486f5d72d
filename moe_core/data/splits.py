"""Training, validation and unseen splits that never part a source.

A model that has read page 3 of a book knows something of page 4. So whole sources are held out: about 8 % of the
bytes of every domain for validation, and another 8 % for the unseen split. For the user's own text the two are
drawn alike; they stay apart because one is watched while training and the other is only looked at in the end.

Whoever chooses between trainings needs a third split, for what a choice was made by cannot judge it afterwards
(docs/decisions/0019). It is taken from training; validation and unseen stay what they are without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moe_core.data.document import Document
from moe_core.data.document_facts import DocumentFacts, seeded_rank
from moe_core.data.sources import MIN_SOURCES
from moe_core.errors import DataError
from moe_core.words import count_of

HELD_OUT_SHARE = 0.08
"""Bytes of a domain that each held-out split should get."""
LARGEST_SHARE = 0.10
"""A source that would take a held-out split beyond this is passed over, unless nothing smaller is left."""
HeldOutSplit = Literal["validation", "unseen"]
HELD_OUT_SPLITS: tuple[HeldOutSplit, ...] = ("validation", "unseen")
ALL_SPLITS: tuple[Literal["train"] | HeldOutSplit, ...] = ("train", *HELD_OUT_SPLITS)
_TRAIN, *_HELD_OUT_CODES = range(len(ALL_SPLITS))
DROPPED, _FREE = 255, 254
TUNING = "tuning"
"""The split of `keep_for_tuning`."""
SCORED_TOKENS_PER_DOMAIN = 65_536
"""Limit for each held-out split: a corpus of a few megabytes is scored whole, a larger one within minutes."""


def split_documents(documents: Sequence[Document], *, seed: int) -> list[Document]:
    """The same documents in the same order, each with its split; deterministic in `seed`.

    Each split has at least one source of every domain. A held-out document whose exact text also stands in training,
    or in an earlier held-out split, is dropped: scoring it would reward memory. Raises DataError when a domain has
    fewer than three sources, or when dropping leaves a split of it empty.
    """
    facts = DocumentFacts(seed)
    for document in documents:
        facts.add(document)
    return [
        replace(document, split=ALL_SPLITS[code])
        for document, code in zip(documents, split_codes(facts), strict=True)
        if code != DROPPED
    ]


def split_codes(facts: DocumentFacts) -> NDArray[np.uint8]:
    """[documents]: place of their split in ALL_SPLITS, or DROPPED; see split_documents."""
    codes = np.zeros(len(facts), dtype=np.uint8)
    known = _Assigned()
    for number in sorted(range(len(facts.domains)), key=lambda number: facts.domains[number]):
        places = np.flatnonzero(facts.domain_ids == number)
        sources, source_of = np.unique(facts.sources[places], return_inverse=True)
        sizes = np.zeros(len(sources), dtype=np.int64)
        np.add.at(sizes, source_of, facts.bytes[places])
        of_sources = _assign_domain(facts.domains[number], sizes, known.codes_of(sources))
        known.add(sources, of_sources)
        codes[places] = of_sources[source_of]
    _drop_known_texts(facts, codes)
    return codes


def keep_for_tuning(documents: Sequence[Document], *, seed: int) -> list[Document]:
    """Documents that are split already, with whole training sources of every domain moved to the split TUNING.

    As many as each held-out split should get, at least one, and never a domain's last training source. Validation and
    unseen stay as they are. A document whose exact text also stands in another split is dropped from this one.
    Raises DataError when a domain has no training source to spare.
    """
    sizes = _source_bytes(documents)
    training = _source_bytes([document for document in documents if document.split == "train"])
    split_of: dict[str, str] = {}
    for domain in sorted(sizes):
        _take_from_training(domain, training[domain], sum(sizes[domain].values()), seed, split_of)
    moved = [
        replace(document, split=split_of[document.source]) if document.split == "train" else document
        for document in documents
    ]
    known = {document.text for document in moved if document.split != TUNING}
    kept = [document for document in moved if document.split != TUNING or document.text not in known]
    emptied = sorted(sizes.keys() - {document.domain for document in kept if document.split == TUNING})
    if emptied:
        raise DataError(
            f"domain {emptied[0]!r} has no text left to choose learning rates on: all of it also stands in another "
            "split; remove repeated texts or add sources"
        )
    return kept


def _take_from_training(domain: str, sizes: dict[str, int], whole: int, seed: int, split_of: dict[str, str]) -> None:
    """Give each training source of one domain its split. `sizes`: their bytes; `whole`: those of the whole domain.

    A source met in an earlier domain keeps the split it has there.
    """
    taken = sum(size for source, size in sizes.items() if split_of.get(source) == TUNING)
    free = sorted((source for source in sizes if source not in split_of), key=lambda source: seeded_rank(seed, source))
    spare = len(free) - (0 if any(split_of.get(source) == "train" for source in sizes) else 1)
    chosen: list[str] = []
    for source in free:
        if len(chosen) < spare and taken < HELD_OUT_SHARE * whole and taken + sizes[source] <= LARGEST_SHARE * whole:
            chosen.append(source)
            taken += sizes[source]
    if not taken and spare > 0:
        chosen = [min(free, key=lambda source: sizes[source])]
    split_of.update(dict.fromkeys(free, "train") | dict.fromkeys(chosen, TUNING))
    if {split_of[source] for source in sizes} != {"train", TUNING}:
        raise DataError(
            f"domain {domain!r} has no source to spare for choosing learning rates: beside validation and unseen it "
            f"has {count_of(len(sizes), 'source')}, and training needs one of its own; add files or rows, or (plain "
            "text) more sections between blank lines"
        )


def _source_bytes(documents: Sequence[Document]) -> dict[str, dict[str, int]]:
    """UTF-8 bytes per domain and source."""
    sizes: dict[str, dict[str, int]] = {}
    for document in documents:
        of_domain = sizes.setdefault(document.domain, {})
        of_domain[document.source] = of_domain.get(document.source, 0) + len(document.text.encode())
    return sizes


class _Assigned:
    """The splits that sources were given, in any domain."""

    def __init__(self) -> None:
        self._sources, self._codes = np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.uint8)

    def codes_of(self, sources: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """Of some of them, _FREE where one has none yet."""
        found = np.full(len(sources), _FREE, dtype=np.uint8)
        if len(self._sources):
            places = np.minimum(np.searchsorted(self._sources, sources), len(self._sources) - 1)
            is_known = self._sources[places] == sources
            found[is_known] = self._codes[places[is_known]]
        return found

    def add(self, sources: NDArray[np.uint64], codes: NDArray[np.uint8]) -> None:
        """Remember them; one that was known stays what it is."""
        self._sources, first = np.unique(np.concatenate([self._sources, sources]), return_index=True)
        self._codes = np.concatenate([self._codes, codes])[first]


def _assign_domain(domain: str, sizes: NDArray[np.int64], codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[sources]: the split of each source of one domain; `sizes` are their bytes, in the order of their seeded ranks.

    `codes`: the split of a source that was met in an earlier domain, which it keeps, else _FREE. The others come in
    that order; each goes to the poorer held-out split as long as that needs it and it fits.
    """
    if len(sizes) < MIN_SOURCES:
        raise DataError(
            f"domain {domain!r} has {len(sizes)} source{'s' if len(sizes) > 1 else ''}; expected at least "
            f"{MIN_SOURCES}, so that training, validation and unseen each get whole ones: add files or rows, or (plain "
            "text) more sections between blank lines"
        )
    codes = codes.copy()
    whole = int(sizes.sum())
    most, enough = LARGEST_SHARE * whole, HELD_OUT_SHARE * whole
    taken = {code: int(sizes[codes == code].sum()) for code in _HELD_OUT_CODES}
    free = int((codes == _FREE).sum())
    kept_for_training = 0 if (codes == _TRAIN).any() else 1
    for source in np.flatnonzero(codes == _FREE):
        code = min(taken, key=lambda code: taken[code])
        if taken[code] >= enough:  # the poorer one has enough, and so has the other
            break
        if free > kept_for_training and taken[code] + int(sizes[source]) <= most:
            codes[source] = code
            taken[code] += int(sizes[source])
            free -= 1
    for code in _HELD_OUT_CODES:
        if not taken[code] and free > kept_for_training:
            left = np.flatnonzero(codes == _FREE)
            codes[left[np.argmin(sizes[left])]] = code
            free -= 1
    codes[codes == _FREE] = _TRAIN
    missing = sorted({ALL_SPLITS[code] for code in range(len(ALL_SPLITS)) if not (codes == code).any()})
    if missing:
        raise DataError(
            f"domain {domain!r} shares its sources with other domains, which leaves none for {missing[0]!r}; "
            "give it at least three sources of its own"
        )
    return codes


def _drop_known_texts(facts: DocumentFacts, codes: NDArray[np.uint8]) -> None:
    known = np.unique(facts.texts[codes == _TRAIN])
    for code in _HELD_OUT_CODES:
        places = np.flatnonzero(codes == code)
        is_known = np.isin(facts.texts[places], known)
        codes[places[is_known]] = DROPPED
        kept = places[~is_known]
        emptied = sorted(set(facts.domains) - {facts.domains[number] for number in np.unique(facts.domain_ids[kept])})
        if emptied:
            raise DataError(
                f"domain {emptied[0]!r} has no text left for {ALL_SPLITS[code]!r}: all of its held-out texts also "
                "stand in another split; remove repeated texts or add sources"
            )
        known = np.union1d(known, facts.texts[kept])
