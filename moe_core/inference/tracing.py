"""Send text through a loaded model and keep where every token went, how surprising it was, and its rank.

Long texts go through in windows, see moe_core.data.windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moe_core.data.document import Document
from moe_core.data.tokens import TokenDataset
from moe_core.data.windows import WindowBatch
from moe_core.errors import UsageError
from moe_core.inference.open import language_model
from moe_core.inference.protocol import LanguageModel, Loaded, check_token_ids
from moe_core.inference.reading import ReadGroup, read_groups
from moe_core.inference.scoring import likeliest, tokenised
from moe_core.progress import Progress, silent
from moe_core.routing import Recorder, RoutingTrace, StoredTrace, concatenate
from moe_core.routing.trace.parquet import TraceWriter

# A trace that would hold more router logits than this goes without: E of them per token and layer, most of its size.
MAX_LOGITS_BYTES = 2**28


@dataclass(frozen=True, eq=False)
class TracedText:
    """The routing of one text and how well the model foresaw each token.

    T counts the end-of-text before the text, where the model has one; the first token is the one that nothing predicts.
    """

    trace: RoutingTrace
    losses: NDArray[np.float32]
    """[T] nats: -ln of the probability given to the token by those before it; NaN for the first."""
    ranks: NDArray[np.int32]
    """[T] place of the token among the model's guesses, 1 = the likeliest (see scoring.py); 0 for the first."""


def trace_text(
    loaded: Loaded | LanguageModel, text: str, *, domain: str = "text", progress: Progress | None = None
) -> TracedText:
    """Trace one text. Raises UsageError when it is empty, DataError when UTF-8 cannot hold it."""
    if not text:
        raise UsageError("there is no text to trace; expected at least one character")
    model = language_model(loaded)
    return trace_dataset(model, _tokenised(model, [Document(text, domain, "text", "")]), progress)


def trace_documents(
    loaded: Loaded | LanguageModel,
    documents: Sequence[Document],
    *,
    progress: Progress | None = None,
    tokens_per_domain: int | None = None,
) -> RoutingTrace:
    """Trace documents, each with its end-of-text first; document ids are their places in `documents`.

    `tokens_per_domain` bounds the tokens of each domain, see TokenDataset.select.
    The trace has no router_logits where they would take more than MAX_LOGITS_BYTES.
    Domains are numbered in the order in which they first occur.
    """
    if not documents or (tokens_per_domain is not None and tokens_per_domain < 2):
        raise UsageError(
            f"{len(documents)} documents with tokens_per_domain = {tokens_per_domain} leave nothing to trace; "
            "expected at least one document and two tokens"
        )
    model = language_model(loaded)
    (progress or silent)("tokenising", 0, len(documents))
    dataset = _tokenised(model, documents)
    if tokens_per_domain is not None:
        dataset = dataset.select(tokens_per_domain, seed=0)
    return trace_dataset(model, dataset, progress).trace


def write_documents_trace(
    loaded: Loaded | LanguageModel,
    documents: Sequence[Document],
    path: str | Path,
    *,
    tokens_per_batch: int | None = None,
    progress: Progress | None = None,
) -> StoredTrace:
    """Trace documents into a file as they are read, and open it: the same as trace_documents(...).save(path).

    In memory are the text, some 30 bytes a token of it, and the routing of two row groups, of which one is read while
    the other is written; not the trace.
    `tokens_per_batch`: tokens that go through the model together and the longest window at once, see window_batches;
    fewer take less memory, of which the logits are the most: 4 bytes for each token and entry of the vocabulary.
    Raises UsageError for an empty text, TraceError when the disk refuses.
    """
    if not any(document.text for document in documents):
        raise UsageError("there is no text to trace; expected at least one document that is not empty")
    model = language_model(loaded)
    (progress or silent)("tokenising", 0, len(documents))
    dataset = _tokenised(model, documents)
    reading = read_groups(
        model, dataset, tokens_per_batch, keep_logits=logits_fit(model, len(dataset)), progress=progress
    )
    with TraceWriter(path) as writer, closing(reading):
        _write_behind(writer, reading)
    return RoutingTrace.open(path)


def _write_behind(writer: TraceWriter, reading: Iterable[ReadGroup]) -> None:
    """Write each part in another thread while the next one is read; what goes wrong there is raised here."""
    with ThreadPoolExecutor(1, "write trace") as thread:
        written: Future[None] | None = None
        for group in reading:
            if written is not None:
                written.result()  # no more than one part waits
            written = thread.submit(_write, writer, group)
        if written is not None:
            written.result()


def _write(writer: TraceWriter, group: ReadGroup) -> None:
    writer.write(group.trace())


def trace_batches(
    recorder: Recorder,
    read: Sequence[tuple[TokenDataset, WindowBatch]],
    *,
    domains: Sequence[str],
    source: str,
    vocabulary: Sequence[str] | Mapping[int, str],
    predicted_ids: Sequence[NDArray[np.int32]] | None = None,
) -> RoutingTrace:
    """The trace of what `recorder` saw when the model read these windows, in this order; what does not count in its
    window is left out. `predicted_ids`: [B, S] of each batch, see likeliest."""

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(dataset, name)[windows.index].ravel() for dataset, windows in read])

    return recorder.trace(
        token_ids=joined("token_ids"),
        document_ids=joined("document_ids"),
        source_ids=joined("source_ids"),
        positions=joined("positions"),
        domain_ids=joined("domain_ids"),
        domains=domains,
        predicted_ids=None if predicted_ids is None else np.concatenate([ids.ravel() for ids in predicted_ids]),
        source=source,
        vocabulary=vocabulary,
        keep=np.concatenate([windows.keep.ravel() for _, windows in read]),
    )


def logits_fit(model: LanguageModel, tokens: int) -> bool:
    """Whether the router logits of so many tokens stay within MAX_LOGITS_BYTES."""
    return logits_bytes(model, tokens) <= MAX_LOGITS_BYTES


def logits_bytes(model: LanguageModel, tokens: int) -> int:
    """Bytes that the router logits of so many tokens take."""
    return 2 * len(model.moe_layers) * model.num_experts * tokens


def trace_of_windows(
    model: LanguageModel, recorder: Recorder, dataset: TokenDataset, batch: WindowBatch, logits_BSV: torch.Tensor
) -> RoutingTrace:
    """The trace of what `recorder` saw when the model read `batch` and answered with these logits."""
    predicted_BS = likeliest(logits_BSV).cpu().numpy()
    occurring = np.unique(np.concatenate([dataset.token_ids[batch.index], predicted_BS]))
    return trace_batches(
        recorder,
        [(dataset, batch)],
        domains=dataset.domains,
        source=model.name,
        vocabulary={int(i): model.tokenizer.token_text(int(i)) for i in occurring},
        predicted_ids=[predicted_BS],
    )


def trace_dataset(
    loaded: Loaded | LanguageModel, dataset: TokenDataset, progress: Progress | None = None
) -> TracedText:
    """Trace documents that are tokenised already; without router_logits where they would be too large."""
    model = language_model(loaded)
    losses = np.full(len(dataset), np.nan, dtype=np.float32)
    ranks = np.zeros(len(dataset), dtype=np.int32)
    traces: list[RoutingTrace] = []
    keep_logits = logits_fit(model, len(dataset))
    with closing(read_groups(model, dataset, keep_logits=keep_logits, scored=True, progress=progress)) as reading:
        for group in reading:
            traces.append(group.trace())
            for at, nats_N, ranks_N in group.scores():
                losses[at], ranks[at] = nats_N, ranks_N
    return TracedText(concatenate(traces), losses, ranks)


def _tokenised(model: LanguageModel, documents: Sequence[Document]) -> TokenDataset:
    """Raises UsageError with no token, or one that the model cannot read."""
    dataset = tokenised(model, documents)
    if not len(dataset):
        raise UsageError("the text has no token to trace; expected at least one document that is not empty")
    check_token_ids(model, dataset.token_ids)
    return dataset
