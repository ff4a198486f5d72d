"""From a configuration to everything the trainer needs: tokenizer, training tokens and held-out documents."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from data_gen import DOMAINS, SPLITS
from moe_core.config import Config
from moe_core.data.document import Document
from moe_core.data.shards.shard_index import is_prepared
from moe_core.data.shards.shard_reader import ShardFolder, document_places, held_out_documents
from moe_core.data.sources import generated_documents, read_documents
from moe_core.data.splits import TUNING, keep_for_tuning, split_documents
from moe_core.data.token_stream import DocumentPlaces, TokensInMemory, TokenStream
from moe_core.data.tokenizer import TextTokenizer, Tokenizer
from moe_core.data.tokens import count_tokens, encode_documents, number_sources
from moe_core.errors import DataError, UsageError
from moe_core.progress import Progress, silent

REPORTED_TOGETHER = 1024
"""Documents between two words on how far the tokenizer's training is."""


@dataclass(frozen=True)
class PreparedData:
    """What `prepare_data` makes of a configuration; the same configuration and files always give the same."""

    tokenizer: Tokenizer
    train: TokenStream
    validation: list[Document]
    unseen: list[Document]
    domains: tuple[str, ...]
    """Their order gives the domain ids: as generated, or sorted by name for the user's own text."""
    token_counts: NDArray[np.int64]
    """[V]: occurrences in the training split, end-of-text prefixes included."""
    fingerprint: str
    """SHA-256 of the training tokens and the held-out texts; a resumed run must meet the same."""
    places: Callable[[], DocumentPlaces] = DocumentPlaces.none
    """Where the training documents lie in `train`, found when it is asked for: few trainings do."""
    tuning: tuple[Document, ...] = ()
    """Neither trained on nor scored: learning rates may be chosen on them. None unless they were asked for."""


def prepare_data(
    config: Config, *, progress: Progress | None = None, tokenizer: Tokenizer | None = None, tuning: bool = False
) -> PreparedData:
    """Read or generate the text, split it, train the tokenizer on the training split only, and tokenise that split.

    A folder that `moescope data` prepared is opened as it is: what is held out was decided there, and of large
    held-out splits documents are drawn (see shard_reader.HELD_OUT_BYTES).
    A `tokenizer` that is given, as fine-tuning does, is used instead. With `tuning` a third split is held out, from
    documents written in addition or (the user's text) from training ones; validation and unseen stay the same.
    Raises UsageError or DataError (one line) when the text is missing, unreadable, or smaller than one batch.
    """
    report = progress or silent
    if config.data.path is not None and is_prepared(config.data.path):
        return _from_shards(config, config.data.path, tokenizer, tuning)
    documents = _read_or_generate(config, report, tuning)
    by_split = {split: [d for d in documents if d.split == split] for split in (*SPLITS, TUNING)}
    train = by_split["train"]
    domains = DOMAINS if config.data.path is None else tuple(sorted({document.domain for document in train}))
    if tokenizer is None:
        tokenizer = Tokenizer.train(_reported_texts(train, report), config.model.vocab_size)
    report("tokenising", 0, len(train))
    token_ids, lengths = encode_documents(train, tokenizer, report)
    report("tokenising", len(train), len(train))
    stream = TokensInMemory(token_ids)
    check_size(config, stream)
    return PreparedData(
        tokenizer=tokenizer,
        train=stream,
        validation=by_split["validation"],
        unseen=by_split["unseen"],
        domains=tuple(domains),
        token_counts=count_tokens(token_ids, tokenizer.vocab_size),
        fingerprint=_fingerprint_of(token_ids, [*by_split["validation"], *by_split["unseen"], *by_split[TUNING]]),
        places=partial(DocumentPlaces, np.cumsum(lengths) - lengths, lengths, number_sources(train)),
        tuning=tuple(by_split[TUNING]),
    )


def _from_shards(config: Config, path: str, tokenizer: TextTokenizer | None, tuning: bool) -> PreparedData:
    if tuning:
        raise UsageError(
            f"{path!r} is split already, and a comparison holds out a third split to choose learning rates on; give "
            "the text that the folder was prepared from"
        )
    folder = ShardFolder(path)
    if tokenizer is not None:
        folder.check_tokenizer(tokenizer)
    stream = folder.stream()
    check_size(config, stream)
    return PreparedData(
        tokenizer=folder.tokenizer,
        train=stream,
        validation=held_out_documents(folder, "validation"),
        unseen=held_out_documents(folder, "unseen"),
        domains=tuple(folder.index.domains),
        token_counts=folder.token_counts,
        fingerprint=folder.fingerprint,
        places=partial(document_places, folder),
    )


def _reported_texts(documents: Sequence[Document], report: Progress) -> Iterator[str]:
    for number, document in enumerate(documents):
        if number % REPORTED_TOGETHER == 0:
            report("training the tokenizer", number, len(documents))
        yield document.text


def _read_or_generate(config: Config, report: Progress, tuning: bool) -> list[Document]:
    data = config.data
    if data.path is None:
        splits = (*SPLITS, TUNING) if tuning else SPLITS
        return generated_documents(data.documents, seed=data.seed, overlap=data.overlap, splits=splits, progress=report)
    report("reading", 0, 1)
    documents = read_documents(data.path)
    report("reading", 1, 1)
    split = split_documents(documents, seed=data.seed)
    return keep_for_tuning(split, seed=data.seed) if tuning else split


def check_size(config: Config, stream: TokenStream) -> None:
    """Raise DataError for a training text of less than one batch."""
    training = config.training
    needed = training.batch_size * (training.seq_len + 1)
    if len(stream) < needed:
        raise DataError(
            f"the training text has {len(stream)} tokens; expected at least one batch of training.batch_size * "
            f"(training.seq_len + 1) = {needed}: give more text, or lower either"
        )


def _fingerprint_of(token_ids: NDArray[np.int32], held_out: Sequence[Document]) -> str:
    digest = hashlib.sha256(token_ids.astype("<i4", copy=False).data)
    for document in held_out:
        digest.update(f"{document.split}\0{document.domain}\0{len(document.text)}\0{document.text}".encode())
    return digest.hexdigest()
