"""Send text through a loaded model and keep where every token went, how surprising it was, and its rank.

Long texts go through in windows, see windows.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_gen import Document
from moe_core.data.tokens import TokenBatch, TokenDataset
from moe_core.errors import UsageError
from moe_core.inference.loaded import Loaded, context_window
from moe_core.inference.windows import WindowBatch, window_batches
from moe_core.progress import Progress
from moe_core.routing import Recorder, RoutingTrace, capture, concatenate

# A trace that would hold more router logits than this goes without: E of them per token and layer, most of its size.
MAX_LOGITS_BYTES = 2**28


@dataclass(frozen=True, eq=False)
class TracedText:
    """The routing of one text and how well the model foresaw each token. T counts the end-of-text before the text."""

    trace: RoutingTrace
    losses: NDArray[np.float32]
    """[T] nats: -ln of the probability given to the token by those before it; NaN for the first, end-of-text."""
    ranks: NDArray[np.int32]
    """[T] place of the token among the model's guesses, 1 = the likeliest; 0 for the first, which nothing predicts."""


def trace_text(loaded: Loaded, text: str, *, domain: str = "text", progress: Progress | None = None) -> TracedText:
    """Trace one text. Raises UsageError when it is empty, DataError when UTF-8 cannot hold it."""
    if not text:
        raise UsageError("there is no text to trace; expected at least one character")
    dataset = TokenDataset.build([Document(text, domain, "text", "")], loaded.tokenizer, [domain])
    return trace_dataset(loaded, dataset, progress)


def trace_documents(
    loaded: Loaded,
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
    if progress is not None:
        progress("tokenising", 0, len(documents))
    domains = list(dict.fromkeys(document.domain for document in documents))
    dataset = TokenDataset.build(documents, loaded.tokenizer, domains)
    if tokens_per_domain is not None:
        dataset = dataset.select(tokens_per_domain, seed=0)
    return trace_dataset(loaded, dataset, progress).trace


def trace_batches(
    recorder: Recorder,
    batches: Sequence[TokenBatch],
    *,
    domains: Sequence[str],
    source: str,
    vocabulary: Sequence[str],
    predicted_ids: Sequence[NDArray[np.int32]] | None = None,
) -> RoutingTrace:
    """The trace of what `recorder` saw when the model read `batches`, in this order; padding is left out.

    So is the last token of each document: it is nobody's input in a batch that predicts the next token.
    `predicted_ids`: [B, S] of each batch, see likeliest.
    """

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(batch, name).ravel() for batch in batches])

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
        keep=joined("mask"),
    )


def likeliest(logits_BSV: torch.Tensor) -> NDArray[np.int32]:
    """[B, S] the token each place predicts: the argmax of its logits."""
    ids: NDArray[np.int32] = logits_BSV.argmax(dim=-1).to(torch.int32).cpu().numpy()
    return ids


def logits_fit(loaded: Loaded, tokens: int) -> bool:
    """Whether the router logits of so many tokens stay within MAX_LOGITS_BYTES."""
    model = loaded.model.config
    return 2 * len(model.moe_layers) * model.num_experts * tokens <= MAX_LOGITS_BYTES


def trace_of_windows(
    loaded: Loaded, recorder: Recorder, dataset: TokenDataset, batch: WindowBatch, logits_BSV: torch.Tensor
) -> RoutingTrace:
    """The trace of what `recorder` saw when the model read `batch` and answered with these logits."""
    index_BS = batch.index
    token_ids_BS = dataset.token_ids[index_BS]
    return recorder.trace(
        token_ids=token_ids_BS,
        document_ids=dataset.document_ids[index_BS],
        source_ids=dataset.source_ids[index_BS],
        positions=dataset.positions[index_BS],
        domain_ids=dataset.domain_ids[index_BS],
        domains=dataset.domains,
        predicted_ids=likeliest(logits_BSV),
        source=_name(loaded),
        vocabulary={int(i): loaded.tokenizer.token_text(int(i)) for i in np.unique(token_ids_BS)},
        keep=batch.keep,
    )


@torch.inference_mode()
def trace_dataset(loaded: Loaded, dataset: TokenDataset, progress: Progress | None = None) -> TracedText:
    """Trace documents that are tokenised already; without router_logits where they would be too large."""
    size = context_window(loaded)
    device = next(loaded.model.parameters()).device
    losses = np.full(len(dataset), np.nan, dtype=np.float32)
    ranks = np.zeros(len(dataset), dtype=np.int32)
    traces: list[RoutingTrace] = []
    keep_logits = logits_fit(loaded, len(dataset))
    for batch in window_batches(dataset, size):
        index_BS = batch.index
        token_ids_BS = torch.from_numpy(dataset.token_ids[index_BS].astype(np.int64)).to(device)
        with capture(loaded.model, keep_logits=keep_logits) as recorder:
            logits_BSV = loaded.model(token_ids_BS).logits
        at, scored = batch.targets, batch.scored
        losses[at], ranks[at] = _score(logits_BSV[:, :-1], token_ids_BS[:, 1:], torch.from_numpy(scored).to(device))
        # Batch by batch: what windows read as context only is let go at once.
        traces.append(trace_of_windows(loaded, recorder, dataset, batch, logits_BSV))
        if progress is not None:
            progress("tracing", int(index_BS[-1, -1]) + 1, len(dataset))
    return TracedText(concatenate(traces), losses, ranks)


def _score(
    logits_BSV: torch.Tensor, targets_BS: torch.Tensor, scored_BS: torch.Tensor
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Loss in nats and rank (1 = likeliest; ties count in the token's favour) of the scored targets, row by row."""
    logits_TV, targets_T = logits_BSV[scored_BS].float(), targets_BS[scored_BS]
    losses_T = torch.nn.functional.cross_entropy(logits_TV, targets_T, reduction="none")
    ranks_T = 1 + (logits_TV > logits_TV.gather(1, targets_T[:, None])).sum(dim=1)
    return losses_T.cpu().numpy(), ranks_T.to(torch.int32).cpu().numpy()


def _name(loaded: Loaded) -> str:
    """What people read as the trace's origin; a model that is still in training has no run of its own yet."""
    run = getattr(loaded, "run", None)
    return f"run {run.name}, step {getattr(loaded, 'step', 0)}" if run is not None else "model in memory"
