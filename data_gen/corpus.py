"""The corpus: every document is a pure function of (seed, overlap, domain, split, index)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from data_gen import code, finance, general, legal
from data_gen.grammar import polish
from data_gen.prose import Writer
from data_gen.row import DOMAINS, SPLITS, TUNING, Row
from data_gen.scene import Scene

WRITERS = {"finance": finance.write, "legal": legal.write, "code": code.write, "general": general.write}
SHORTEST, LONGEST = 1000, 2500  # characters aimed at
# 40 documents a domain in each held-out split of the default corpus: about 20,000 tokens a domain, scored in seconds.
HELD_OUT_PART = 25
REPORT_EVERY = 20  # documents
Progress = Callable[[str, int, int], None]


def document_seed(seed: int, domain: str, split: str, index: int) -> int:
    """A 64-bit seed that depends on its arguments alone: not on the run, the process or the number of documents."""
    digest = hashlib.blake2b(f"{seed}/{domain}/{split}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def write_document(domain: str, split: str, index: int, *, seed: int, overlap: float) -> Row:
    """One document. The unseen split is written with the held-out templates alone, the others without them."""
    scene = Scene(domain, document_seed(seed, domain, split, index), overlap)
    writer = Writer(domain, split == "unseen", overlap)
    text = WRITERS[domain](writer, scene, scene.between(SHORTEST, LONGEST))
    return Row(text if domain == "code" else polish(text), domain, f"{domain}/{split}/{index}", split)


def generate_corpus(
    documents: int = 1000,
    *,
    seed: int = 0,
    overlap: float = 0.25,
    domains: Sequence[str] = DOMAINS,
    splits: Sequence[str] = SPLITS,
    progress: Progress | None = None,
) -> list[Row]:
    """Write `documents` training documents per domain, and 1 for every 25 (at least 8) in each held-out split.

    `validation` and `tuning` share the templates of `train`; `unseen` uses templates that occur nowhere else.
    `overlap` in 0..1 is how much the domains share: names, and sentences written by one mixture of the prose
    domains. More documents extend a smaller corpus of the same seed.
    """
    if documents < 1 or not 0 <= overlap <= 1:
        raise ValueError(f"documents={documents}, overlap={overlap}: expected at least 1, and within 0..1")
    for value, known in [(domain, DOMAINS) for domain in domains] + [(split, (*SPLITS, TUNING)) for split in splits]:
        if value not in known:
            raise ValueError(f"{value!r} is not known; expected one of {', '.join(known)}")
    wanted = [
        (domain, split, index)
        for split in splits
        for domain in domains
        for index in range(documents if split == "train" else max(8, documents // HELD_OUT_PART))
    ]
    corpus: list[Row] = []
    for domain, split, index in wanted:
        corpus.append(write_document(domain, split, index, seed=seed, overlap=overlap))
        if progress and (len(corpus) % REPORT_EVERY == 0 or len(corpus) == len(wanted)):
            progress("writing documents", len(corpus), len(wanted))
    return corpus
