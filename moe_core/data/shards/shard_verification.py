"""Whether a folder of shards is what was written: every byte, every count, and that its tokenizer is the one."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moe_core.data.shards.shard_contents import Contents, shard_contents
from moe_core.data.shards.shard_index import INDEX, TOKEN_COUNTS, TOKENIZER, Shard, ShardIndex
from moe_core.data.shards.shard_reader import ShardFolder
from moe_core.data.tokenizer import Tokenizer
from moe_core.errors import DataError
from moe_core.progress import Progress, silent

READ_TOGETHER = 2**22
"""Bytes, or tokens of whole documents, that are looked at at a time."""
_ENDINGS = (".bin", ".parquet")


@dataclass(frozen=True)
class Fault:
    """Something that is not as it was written."""

    file: str
    fault: str
    """In words that go on from the file's name."""


@dataclass
class Verification:
    """What reading the whole folder found."""

    faults: list[Fault] = field(default_factory=list)
    contents: dict[tuple[str, str], Contents] = field(default_factory=dict)
    """By split and domain, of the sound shards."""


def verify(path: Path, *, progress: Progress | None = None) -> Verification:
    """Read everything in a folder of shards. Raises DataError where there is no readable index to hold it against."""
    report = progress or silent
    folder = ShardFolder(path, check_sizes=False)
    index = folder.index
    result = Verification()
    tokenizer = _tokenizer(folder, result)
    result.faults += [*_duplicated(index), *_not_in_index(path, index)]
    counts = np.zeros(index.vocab_size, dtype=np.int64)
    counted = True
    for number, shard in enumerate(index.shards):
        report("verifying", number, len(index.shards))
        before = len(result.faults)
        file = path / shard.file
        fault = _damage(file, shard.bytes, shard.sha256)
        if fault:
            result.faults.append(Fault(shard.file, fault))
        table = path / shard.documents_file
        fault = _damage(table, None, shard.documents_sha256)
        if fault:
            result.faults.append(Fault(shard.documents_file, fault))
        if len(result.faults) == before:
            result.faults += _contradictions(folder, shard, tokenizer, counts)
        if len(result.faults) > before:
            counted = counted and shard.split != "train"
            continue
        for domain, contents in shard_contents(folder, shard).items():
            key = (shard.split, domain)
            result.contents[key] = result.contents.get(key, Contents()) + contents
    report("verifying", len(index.shards), len(index.shards))
    result.faults += _wrong_counts(folder, counts if counted else None)
    return result


def _tokenizer(folder: ShardFolder, result: Verification) -> Tokenizer | None:
    index = folder.index
    fault = _damage(folder.path / TOKENIZER, None, index.tokenizer_sha256)
    if fault:
        result.faults.append(Fault(TOKENIZER, f"{fault}; ids mean something only with the tokenizer that made them"))
        return None
    try:
        tokenizer = folder.tokenizer
    except DataError as error:
        result.faults.append(Fault(TOKENIZER, f"cannot be read: {error}"))
        return None
    if (tokenizer.vocab_size, tokenizer.end_of_text) == (index.vocab_size, index.end_of_text):
        return tokenizer
    result.faults.append(
        Fault(
            TOKENIZER,
            f"is another tokenizer: {tokenizer.vocab_size:,} ids and end-of-text {tokenizer.end_of_text}; the index "
            f"says {index.vocab_size:,} and {index.end_of_text}",
        )
    )
    return None


def _damage(path: Path, size: int | None, sha256: str) -> str | None:
    """What is wrong with a file's bytes, in words; None for nothing. `size`: bytes that the index says."""
    try:
        found = path.stat().st_size
        if size is not None and found != size:
            return f"is {'truncated' if found < size else 'too long'}: {found:,} bytes; the index says {size:,}"
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while content := file.read(READ_TOGETHER):
                digest.update(content)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return None if digest.hexdigest() == sha256 else f"was changed: its SHA-256 is not that in {INDEX}"


def _duplicated(index: ShardIndex) -> list[Fault]:
    """Shards that the index has twice: by name, or with the same content under another name."""
    faults: list[Fault] = []
    first_with: dict[str, str] = {}
    for file, count in Counter(shard.file for shard in index.shards).items():
        if count > 1:
            faults.append(Fault(file, f"is in the index {count} times"))
    for shard in index.shards:
        first = first_with.setdefault(shard.sha256, shard.file)
        if first != shard.file and shard.tokens:
            faults.append(Fault(shard.file, f"is a duplicate: the same ids as {first}"))
    return faults


def _not_in_index(path: Path, index: ShardIndex) -> list[Fault]:
    known = {TOKEN_COUNTS, *(name for shard in index.shards for name in (shard.file, shard.documents_file))}
    shard_of = {shard.sha256: shard.file for shard in index.shards}
    faults: list[Fault] = []
    for file in sorted(path.iterdir()):
        if file.suffix in _ENDINGS and not file.name.startswith(".") and file.name not in known:
            first = next((name for sha256, name in shard_of.items() if _damage(file, None, sha256) is None), None)
            what = f"a duplicate of {first}, which" if first else "a file that"
            faults.append(Fault(file.name, f"is {what} the index does not name"))
    return faults


def _contradictions(
    folder: ShardFolder, shard: Shard, tokenizer: Tokenizer | None, counts_V: NDArray[np.int64]
) -> list[Fault]:
    """What cannot be true of a shard whose bytes are those that were written; adds training tokens to `counts_V`."""
    try:
        table = folder.documents(shard)
    except DataError as error:
        return [Fault(shard.documents_file, f"is not as the index says: {error}")]
    starts, tokens, sizes = (table[name].to_numpy() for name in ("start", "tokens", "bytes"))
    ends = np.cumsum(tokens)
    if (tokens < 1).any() or (starts != ends - tokens).any() or (ends[-1] if len(ends) else 0) != shard.tokens:
        return [Fault(shard.documents_file, "does not cut the shard's tokens into its documents one after the other")]
    strange = sorted(set(table["domain"].unique().to_pylist()) - set(folder.index.domains))
    if shard.split == "train" and strange:
        return [Fault(shard.documents_file, f"names the domain {strange[0]!r}, which the index does not")]
    end_of_text = folder.index.end_of_text
    length_V = None if tokenizer is None else _lengths(tokenizer)
    ids_of_shard = folder.ids(shard)
    first = 0
    while first < len(tokens):
        begin = int(starts[first])
        last = max(first + 1, int(np.searchsorted(ends, begin + READ_TOGETHER, side="right")))
        ids = np.asarray(ids_of_shard[begin : int(ends[last - 1])])
        largest = int(ids.max())
        if largest >= folder.index.vocab_size:
            return [Fault(shard.file, f"holds the id {largest:,}; the tokenizer has {folder.index.vocab_size:,}")]
        places = starts[first:last] - begin
        if end_of_text is not None and not np.array_equal(np.flatnonzero(ids == end_of_text), places):
            return [Fault(shard.file, "does not begin each document, and nothing else, with end-of-text")]
        if length_V is not None:
            found = np.add.reduceat(length_V[ids], places)
            wrong = np.flatnonzero(found != sizes[first:last])
            if len(wrong):
                at = int(wrong[0])
                return [
                    Fault(
                        shard.documents_file,
                        f"row {first + at + 1} says {sizes[first + at]:,} bytes of text, but its ids are "
                        f"{found[at]:,}: wrong counts, or a tokenizer that did not make them",
                    )
                ]
        if shard.split == "train":
            counts_V += np.bincount(ids, minlength=len(counts_V))
        first = last
    return []


def _lengths(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """[V] UTF-8 bytes of each token."""
    return np.array([len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)], dtype=np.int64)


def _wrong_counts(folder: ShardFolder, counts_V: NDArray[np.int64] | None) -> list[Fault]:
    """`counts_V`: of the training split; None where a shard of it is damaged."""
    fault = _damage(folder.path / TOKEN_COUNTS, 8 * folder.index.vocab_size, folder.index.token_counts_sha256)
    if fault:
        return [Fault(TOKEN_COUNTS, fault)]
    if counts_V is None or (counts_V == folder.token_counts).all():
        return []
    wrong = int(np.flatnonzero(counts_V != folder.token_counts)[0])
    said, found = int(folder.token_counts[wrong]), int(counts_V[wrong])
    return [Fault(TOKEN_COUNTS, f"says {said:,} occurrences of id {wrong} in training; there are {found:,}")]
