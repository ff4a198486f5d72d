"""Which documents are copies of others: exactly, or nearly by MinHash and locality-sensitive hashing.

Two documents are exact copies when they are the same but for white space and Unicode's ways of writing one character
(SHA-256 of the normalised text). They are near copies when the Jaccard similarity J of their shingles is at least the
threshold. A shingle is three words in a row, whatever their case; a word is a run of letters and digits, a sign, or a
character of a script that is written without spaces. J = shingles in both / shingles in either.

MinHash (Broder 1997; the library datasketch) estimates J by 128 numbers a document. Bands of them find candidates: two
documents that agree in a whole band. Candidates are then held against each other by their true J, so what is removed is
certain, and only what is found is a matter of chance: the bands are chosen so that a pair at the threshold is a
candidate with probability .98, one above it more often.

Of copies the first stays: documents are taken in the order train, validation, unseen, and in their own order within a
split. So a score on held-out text rewards no memory, and training loses nothing for it; nor is anything unseen that
validation watched. A document is compared with those that stay, not with those that went, so a chain of ever less
similar documents is not removed whole.

Memory: some 250 bytes a document; shingles lie in a temporary file.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray

from moe_core.errors import UsageError
from moe_core.progress import Progress, silent

SHINGLE_WORDS = 3
PERMUTATIONS = 128
THRESHOLD = 0.7
FOUND_AT_THRESHOLD = 0.98
"""Probability that a pair whose J is the threshold becomes a candidate."""
MOST_COMPARED = 64
"""Candidates that a document is held against, those that agree in most bands first."""
SPLIT_ORDER = ("train", "validation", "unseen")
_WITHOUT_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese."""
_WORD = re.compile(rf"[{_WITHOUT_SPACES}]|[^\W{_WITHOUT_SPACES}]+|[^\w\s]")
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)
"""Odd numbers; the place of a word within its shingle counts."""


@dataclass(frozen=True)
class Copy:
    """A document to remove. Numbers are places in the order in which documents were given."""

    document: int
    kept: int
    """The document that it is a copy of, which stays."""
    similarity: float
    """Their true J; 1 for an exact copy."""
    exact: bool


def find_copies(
    documents: Iterable[tuple[str, str]],
    *,
    threshold: float = THRESHOLD,
    exact_only: bool = False,
    progress: Progress | None = None,
    total: int = 0,
) -> list[Copy]:
    """The copies among (text, split), which are read once; a split that is none of SPLIT_ORDER counts as the last.

    `total`: how many there are, for the progress alone. Raises UsageError where datasketch is missing.
    """
    if not exact_only:
        _check_datasketch()
    bands, rows = bands_of(threshold)
    digests, ranks, keys = bytearray(), bytearray(), bytearray()
    report = progress or silent
    with tempfile.TemporaryFile() as spool:
        ends = [0]
        for number, (text, split) in enumerate(documents):
            if number % 256 == 0:
                report("comparing documents", number, max(total, number))
            digests += hashlib.sha256(_normalised(text).encode()).digest()[:16]
            ranks.append(SPLIT_ORDER.index(split) if split in SPLIT_ORDER else len(SPLIT_ORDER))
            if not exact_only:
                found = shingles(text)
                spool.write(found.tobytes())
                ends.append(ends[-1] + len(found))
                keys += _band_keys(found, bands, rows).tobytes()
        order = np.argsort(np.frombuffer(ranks, dtype=np.uint8), kind="stable")
        copies = _exact_copies(np.frombuffer(digests, dtype="S16"), order)
        if not exact_only and len(order):
            gone = {copy.document for copy in copies}
            fresh = np.array([i for i in order if i not in gone], dtype=np.int64)
            keys_NB = np.frombuffer(keys, dtype=np.uint64).reshape(-1, bands)
            copies += _near_copies(keys_NB, fresh, _Spool(spool, ends), threshold)
    return sorted(copies, key=lambda copy: copy.document)


def bands_of(threshold: float) -> tuple[int, int]:
    """Bands and rows in each: as many rows as leave a pair at the threshold its chance of FOUND_AT_THRESHOLD."""
    for rows in range(PERMUTATIONS, 0, -1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= FOUND_AT_THRESHOLD:
            return bands, rows
    raise UsageError(f"a threshold of {threshold} is too low to find; expected at least .04")


def shingles(text: str) -> NDArray[np.uint32]:
    """[S] the hashes of the text's shingles, ascending, each once; a text of fewer words is one shingle."""
    words = [zlib.crc32(word.encode()) for word in _WORD.findall(unicodedata.normalize("NFC", text).casefold())]
    words += [0] * (SHINGLE_WORDS - len(words))
    hashes = np.array(words, dtype=np.uint64)
    count = len(words) - SHINGLE_WORDS + 1
    mixed = np.zeros(count, dtype=np.uint64)
    for place in range(SHINGLE_WORDS):
        mixed = (mixed ^ (hashes[place : place + count] * _MIX[place])) * _MIX[0]
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


def jaccard(left: NDArray[np.uint32], right: NDArray[np.uint32]) -> float:
    """Shingles in both / shingles in either. Both ascending and without repeats."""
    both = len(np.intersect1d(left, right, assume_unique=True))
    return both / (len(left) + len(right) - both)


def _normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _check_datasketch() -> None:
    import importlib.util

    if importlib.util.find_spec("datasketch") is None:
        raise UsageError(
            "near copies need the library datasketch, which is not installed; python -m pip install -r "
            "requirements-data.txt in a checkout, else pip install 'moescope[data]'; or say --exact-only"
        )


def _band_keys(found: NDArray[np.uint32], bands: int, rows: int) -> NDArray[np.uint64]:
    """[bands] a key for each band of the MinHash."""
    from datasketch import MinHash

    sketch = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=int)
    sketch.update_batch(found)
    used = sketch.hashvalues[: bands * rows].reshape(bands, rows)
    return np.array(
        [int.from_bytes(hashlib.blake2b(band.tobytes(), digest_size=8).digest()) for band in used], np.uint64
    )


@dataclass(frozen=True)
class _Spool:
    """Shingles of all documents, one after the other in a file."""

    file: IO[bytes]
    ends: Sequence[int]

    def __getitem__(self, number: int) -> NDArray[np.uint32]:
        self.file.seek(4 * self.ends[number])
        return np.frombuffer(self.file.read(4 * (self.ends[number + 1] - self.ends[number])), dtype=np.uint32)


def _exact_copies(digests: NDArray[np.bytes_], order: NDArray[np.int64]) -> list[Copy]:
    first: dict[bytes, int] = {}
    copies: list[Copy] = []
    view = digests.view("V16")  # S16 would pass over zero bytes at the end
    for number in order.tolist():
        kept = first.setdefault(view[number].tobytes(), number)
        if kept != number:
            copies.append(Copy(number, kept, 1.0, exact=True))
    return copies


def _near_copies(keys_NB: NDArray[np.uint64], order: NDArray[np.int64], spool: _Spool, threshold: float) -> list[Copy]:
    """Documents in `order`, each held against those before it that stay and agree with it in a band."""
    shared_NB = np.zeros((len(order), keys_NB.shape[1]), dtype=bool)
    for band in range(keys_NB.shape[1]):
        _, inverse, counts = np.unique(keys_NB[order, band], return_inverse=True, return_counts=True)
        shared_NB[:, band] = counts[inverse] > 1
    kept_with: dict[tuple[int, int], list[int]] = {}
    copies: list[Copy] = []
    for place in np.flatnonzero(shared_NB.any(axis=1)).tolist():
        number = int(order[place])
        buckets = [(band, int(keys_NB[number, band])) for band in np.flatnonzero(shared_NB[place]).tolist()]
        candidates = Counter(kept for bucket in buckets for kept in kept_with.get(bucket, ()))
        own = spool[number] if candidates else None
        best = (0.0, -1)
        for kept, _ in candidates.most_common(MOST_COMPARED):
            assert own is not None
            best = max(best, (jaccard(own, spool[kept]), kept), key=lambda pair: (pair[0], -pair[1]))
        if best[0] >= threshold:
            copies.append(Copy(number, best[1], best[0], exact=False))
        else:
            for bucket in buckets:
                kept_with.setdefault(bucket, []).append(number)
    return copies
