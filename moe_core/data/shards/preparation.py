"""From text of any size to a folder of shards, in memory that hardly grows with it.

Text is read three times: to decide the splits by size, to train the tokenizer on a part of the training split, and to
tokenise. Documents go to the tokenizer in batches, several at a time; results come in order, so that the bytes that
are written depend neither on the number of workers nor on where an earlier process was killed.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from moe_core.data.document import Document
from moe_core.data.document_facts import DocumentFacts
from moe_core.data.shards.shard_index import TOKENIZER, ShardIndex, Split, is_prepared
from moe_core.data.shards.shard_reader import ShardFolder
from moe_core.data.shards.shard_writer import SHARD_TOKENS, ShardWriter
from moe_core.data.shards.unfinished import Journal, unfinished
from moe_core.data.sources import PartCounter, PlainTextParts, TextFiles
from moe_core.data.splits import ALL_SPLITS, DROPPED, split_codes
from moe_core.data.tokenizer import Tokenizer
from moe_core.data.tokens import ENCODED_TOGETHER, MOST_TOGETHER, encode_documents
from moe_core.errors import DataError
from moe_core.progress import Progress, silent
from moe_core.runs.files import write_atomic

SAMPLED_BYTES = 2**26
"""UTF-8 bytes of training text that a tokenizer is trained on; of more, so much is drawn. Memory grows with it."""
_REPORTED_TOGETHER = 1024
_TRAINED = "trained,"
_LEARNED_FROM = 8
"""Added to the code of a training document that the tokenizer is trained on."""


def prepare_shards(
    inputs: Sequence[str | Path],
    out: Path,
    *,
    vocab_size: int,
    tokenizer: Tokenizer | None = None,
    seed: int = 0,
    workers: int = 1,
    shard_tokens: int = SHARD_TOKENS,
    resume: bool = False,
    progress: Progress | None = None,
) -> ShardIndex:
    """Read, split and tokenise the text of `inputs` into the folder `out`, which must be new or empty.

    `tokenizer`: used as it is; None trains one of at most `vocab_size` ids, as training on the text itself would.
    `seed`: of the split. `workers`: batches that are tokenised at a time, each by one core. `shard_tokens`: training
    tokens of a shard, about. `resume`: go on where a process ended, with the same arguments.
    Raises UsageError for a place that is taken or text that is missing, DataError for text that cannot be read or
    split, RunError for a disk that refuses.
    """
    report = progress or silent
    files = TextFiles(inputs)
    given = None if tokenizer is None else _sha256(tokenizer.to_json())
    settings: dict[str, str | int | list[list[str | int]]] = {
        "files": [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files.paths],
        "seed": seed,
        "shard_tokens": shard_tokens,
        "tokenizer": given or f"{_TRAINED} {vocab_size} ids",
    }
    with unfinished(out, settings, resume=resume) as journal, one_core_each():
        if not is_prepared(out):  # else it was killed just before the end
            _prepare(out, journal, files, vocab_size, tokenizer, workers, report)
    return ShardFolder(out).index


def _prepare(
    out: Path, journal: Journal, files: TextFiles, vocab_size: int, tokenizer: Tokenizer | None, workers: int,
    report: Progress,
) -> None:  # fmt: skip
    if journal.codes_sha256 is None:
        _decide_splits(out, journal, files, report)
    parts = PlainTextParts(journal.part_domains, journal.part_totals)
    codes = journal.codes(out)
    if journal.tokenizer_sha256 is None:
        if tokenizer is None:
            tokenizer = _train(parts.named(_counted(files, journal)), codes, vocab_size, journal, report)
        content = tokenizer.to_json()
        write_atomic(out / TOKENIZER, content.encode())
        journal.tokenizer_sha256 = _sha256(content)
        journal.write(out)
    else:
        journal.tokenizer_json(out)  # raises unless it is the same
        tokenizer = Tokenizer.load(out / TOKENIZER)
    _tokenise(out, journal, parts.named(_counted(files, journal)), codes, tokenizer, workers, report)


def _decide_splits(out: Path, journal: Journal, files: TextFiles, report: Progress) -> None:
    facts, counter = DocumentFacts(int(str(journal.settings["seed"]))), PartCounter(files.plain_sources)
    total = sum(path.stat().st_size for path in files.paths)
    read = 0
    for number, document in enumerate(files):
        facts.add(counter.seen(document))
        read += len(document.text)
        if number % _REPORTED_TOGETHER == 0:
            report("reading", min(read, total), total)
    parts = counter.parts()
    for source in parts.totals:
        facts.rename(parts.domains, source, parts.parts_of(source))
    codes = split_codes(facts)
    journal.documents, journal.bytes = len(facts), int(facts.bytes.sum())
    journal.domains = sorted(facts.domains[number] for number in np.unique(facts.domain_ids[codes == 0]))
    journal.part_domains, journal.part_totals = list(parts.domains), parts.totals
    training = np.flatnonzero(codes == 0)
    # Drawn by the texts' own hashes: at random, and the same whoever draws.
    order = training[np.argsort(facts.texts[training], kind="stable")]
    sizes = np.cumsum(facts.bytes[order])
    sampled = order[: max(1, int(np.searchsorted(sizes, SAMPLED_BYTES, side="right")))]
    if str(journal.settings["tokenizer"]).startswith(_TRAINED):
        journal.tokenizer_bytes = int(facts.bytes[sampled].sum())
    codes[sampled] += _LEARNED_FROM
    journal.write_codes(out, codes)


def _counted(files: TextFiles, journal: Journal) -> Iterator[Document]:
    """The documents again. Raises DataError where they are no longer as many."""
    number = 0
    for number, document in enumerate(files, start=1):
        if number > journal.documents:
            break
        yield document
    if number != journal.documents:
        raise DataError("the text changed while it was prepared; leave the files alone, and start anew")


def _train(
    documents: Iterable[Document], codes: NDArray[np.uint8], vocab_size: int, journal: Journal, report: Progress
) -> Tokenizer:
    def texts() -> Iterator[str]:
        read = 0
        for number, (document, code) in enumerate(zip(documents, codes, strict=True)):
            if code & _LEARNED_FROM and code != DROPPED:
                read += len(document.text)
                yield document.text
            if number % _REPORTED_TOGETHER == 0:
                report("training the tokenizer", min(read, journal.tokenizer_bytes), journal.tokenizer_bytes)

    return Tokenizer.train(texts(), vocab_size)


@dataclass(frozen=True)
class Batch:
    """What is tokenised together."""

    documents: list[Document]
    """Those that have a split, each with its own."""
    end: int
    """Place behind its last document among all, those included that have no split."""
    bytes: int


def _tokenise(
    out: Path, journal: Journal, documents: Iterable[Document], codes: NDArray[np.uint8], tokenizer: Tokenizer,
    workers: int, report: Progress,
) -> None:  # fmt: skip
    counts = np.array(journal.token_counts, dtype=np.int64) if journal.shards else None
    done = journal.done_bytes
    with ShardWriter(out, tokenizer, journal.shards, counts, int(str(journal.settings["shard_tokens"]))) as writer:
        for batch, ids, lengths in encoded(_batches(documents, codes, journal.done), tokenizer, workers):
            ends = np.cumsum(lengths)
            for document, end, length in zip(batch.documents, ends, lengths, strict=True):
                split = cast(Split, document.split)
                writer.add(split, document.domain, document.source, ids[end - length : end], _size(document))
            done += batch.bytes
            report("tokenising", done, journal.bytes)
            if writer.is_full:
                writer.cut()
                journal.shards, journal.token_counts = writer.shards, writer.token_counts.tolist()
                journal.done, journal.done_bytes = batch.end, done
                journal.write(out)
        writer.finish(
            journal.domains,
            {
                "made by": "data prepare",
                "documents read": journal.documents,
                "documents left out": int((codes == DROPPED).sum()),
                "UTF-8 bytes of text": journal.bytes,
                "seed of the split": int(str(journal.settings["seed"])),
                "tokenizer": str(journal.settings["tokenizer"]),
                "UTF-8 bytes the tokenizer was trained on": journal.tokenizer_bytes,
            },
        )


def _batches(documents: Iterable[Document], codes: NDArray[np.uint8], done: int) -> Iterator[Batch]:
    """What is tokenised together, from the document after the first `done` on. Where one ends depends on nothing that
    stands before it."""
    collected: list[Document] = []
    characters = size = end = 0
    for end, (document, code) in enumerate(zip(documents, codes, strict=True), start=1):
        if end <= done:
            continue
        characters += len(document.text)
        size += _size(document)
        if code != DROPPED:
            split = ALL_SPLITS[int(code) & ~_LEARNED_FROM]
            collected.append(Document(document.text, document.domain, document.source, split))
        if characters >= ENCODED_TOGETHER or len(collected) >= MOST_TOGETHER:
            yield Batch(collected, end, size)
            collected, characters, size = [], 0, 0
    if collected:
        yield Batch(collected, end, size)


def encoded(
    batches: Iterator[Batch], tokenizer: Tokenizer, workers: int
) -> Iterator[tuple[Batch, NDArray[np.int32], NDArray[np.int64]]]:
    """Each batch with its ids and the number of ids of each document, in order.

    Threads do it: the tokenizer computes without Python's lock, and they end with the process however it ends.
    """
    waiting: deque[tuple[Batch, Future[tuple[NDArray[np.int32], NDArray[np.int64]]]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for batch in batches:
                waiting.append((batch, pool.submit(encode_documents, batch.documents, tokenizer, silent)))
                if len(waiting) > 2 * workers:
                    first, future = waiting.popleft()
                    yield (first, *future.result())
            while waiting:
                first, future = waiting.popleft()
                yield (first, *future.result())
        finally:
            for _, future in waiting:
                future.cancel()


def _size(document: Document) -> int:
    return len(document.text.encode())


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def one_core_each() -> Iterator[None]:
    """The tokenizer encodes a batch in the thread that asks, so that `workers` says how many cores are at work."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
