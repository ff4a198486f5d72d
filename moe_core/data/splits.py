"""Training, validation and unseen splits that never part a source.

A model that has read page 3 of a book knows something of page 4. So whole sources are held out: about 8 % of the
bytes of every domain for validation, and another 8 % for the unseen split. For the user's own text the two are
drawn alike; they stay apart because one is watched while training and the other is only looked at in the end.

Whoever chooses between trainings needs a third split, for what a choice was made by cannot judge it afterwards
(docs/decisions/0019). It is taken from training; validation and unseen stay what they are without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from moe_core.data.document import Document
from moe_core.data.sources import MIN_SOURCES
from moe_core.errors import DataError
from moe_core.words import count_of

HELD_OUT_SHARE = 0.08
"""Bytes of a domain that each held-out split should get."""
LARGEST_SHARE = 0.10
"""A source that would take a held-out split beyond this is passed over, unless nothing smaller is left."""
HeldOutSplit = Literal["validation", "unseen"]
HELD_OUT_SPLITS: tuple[HeldOutSplit, ...] = ("validation", "unseen")
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
    split_of: dict[str, str] = {}
    for domain, sizes in sorted(_source_bytes(documents).items()):
        _assign_domain(domain, sizes, seed, split_of)
    assigned = [replace(document, split=split_of[document.source]) for document in documents]
    return _drop_known_texts(assigned)


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
    free = sorted((source for source in sizes if source not in split_of), key=lambda source: _seeded_rank(seed, source))
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


def _assign_domain(domain: str, sizes: dict[str, int], seed: int, split_of: dict[str, str]) -> None:
    """Give each source of one domain a split. A source met in an earlier domain keeps the split it has there.

    Sources come in a seeded order; each goes to the poorer held-out split as long as that needs it and it fits.
    """
    if len(sizes) < MIN_SOURCES:
        raise DataError(
            f"domain {domain!r} has {len(sizes)} source{'s' if len(sizes) > 1 else ''}; expected at least "
            f"{MIN_SOURCES}, so that training, validation and unseen each get whole ones: add files or rows, or (plain "
            "text) more sections between blank lines"
        )
    most = LARGEST_SHARE * sum(sizes.values())
    enough = HELD_OUT_SHARE * sum(sizes.values())
    taken: dict[str, int] = dict.fromkeys(HELD_OUT_SPLITS, 0)
    for source, size in sizes.items():
        if split_of.get(source) in taken:
            taken[split_of[source]] += size
    free = sorted((source for source in sizes if source not in split_of), key=lambda source: _seeded_rank(seed, source))
    kept_for_training = 0 if any(split_of.get(source) == "train" for source in sizes) else 1
    for source in list(free):
        split = min(taken, key=lambda split: taken[split])
        if len(free) > kept_for_training and taken[split] < enough and taken[split] + sizes[source] <= most:
            split_of[source] = split
            taken[split] += sizes[source]
            free.remove(source)
    for split in HELD_OUT_SPLITS:
        if not taken[split] and len(free) > kept_for_training:
            smallest = min(free, key=lambda source: sizes[source])
            split_of[smallest] = split
            free.remove(smallest)
    split_of.update(dict.fromkeys(free, "train"))
    missing = {"train", *HELD_OUT_SPLITS} - {split_of[source] for source in sizes}
    if missing:
        raise DataError(
            f"domain {domain!r} shares its sources with other domains, which leaves none for {sorted(missing)[0]!r}; "
            "give it at least three sources of its own"
        )


def _seeded_rank(seed: int, source: str) -> bytes:
    """A seeded order that does not depend on how many other sources there are."""
    return hashlib.sha256(f"{seed}\n{source}".encode()).digest()


def _drop_known_texts(documents: Sequence[Document]) -> list[Document]:
    known = {document.text for document in documents if document.split == "train"}
    kept = {id(document) for document in documents if document.split == "train"}
    domains = {document.domain for document in documents}
    for split in HELD_OUT_SPLITS:
        fresh = [document for document in documents if document.split == split and document.text not in known]
        emptied = sorted(domains - {document.domain for document in fresh})
        if emptied:
            raise DataError(
                f"domain {emptied[0]!r} has no text left for {split!r}: all of its held-out texts also stand in "
                "another split; remove repeated texts or add sources"
            )
        known |= {document.text for document in fresh}
        kept |= {id(document) for document in fresh}
    return [document for document in documents if id(document) in kept]
