"""Loss on whole documents: nats per token, perplexity, bits per UTF-8 byte, and the unigram baseline to beat.

Every text token of a document is predicted from the tokens before it in the same window of `seq_len`
(moe_core.data.windows); the first window begins with end-of-text, which itself is never scored. Nats per token depend
on the tokenizer; bits per byte do not, so they compare runs with different vocabularies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moe_core.data.tokens import TokenDataset
from moe_core.data.windows import WindowBatch, window_batches
from moe_core.inference.scoring import predictions
from moe_core.progress import Progress

if TYPE_CHECKING:
    from moe_core.model.transformer import MoETransformer

EVALUATION_BATCH = 32
"""Windows of `seq_len` tokens that go through the model together."""


@dataclass(frozen=True)
class LossReport:
    """Mean loss over the scored tokens of one split; domains without a scored token are left out of `by_domain`."""

    nats_per_token: float
    """Mean negative log-likelihood, natural logarithm; ln(vocabulary) for uniform guessing."""
    perplexity: float
    """exp(nats_per_token); infinite beyond the range of a float."""
    bits_per_byte: float
    """Total nats / ln 2 / UTF-8 bytes of the text."""
    by_domain: dict[str, float]
    """Nats per token of each domain."""
    tokens: int
    """Scored tokens."""


def evaluate_loss(
    model: MoETransformer,
    dataset: TokenDataset,
    *,
    seq_len: int,
    batch_size: int = EVALUATION_BATCH,
    progress: Progress | None = None,
) -> LossReport:
    """Score every text token of `dataset` once, in evaluation mode (no noise, no capacity drops).

    The model's training mode is put back afterwards. Raises ValueError when the dataset has no token to score.
    """
    device = next(model.parameters()).device
    nats_D = np.zeros(len(dataset.domains))
    tokens_D = np.zeros(len(dataset.domains), dtype=np.int64)
    total = count_text_tokens(dataset)
    was_training = model.training
    model.eval()
    try:
        windows = scored_windows(dataset, seq_len, batch_size)
        for found in predictions(lambda ids_BS: model(ids_BS).logits, device, dataset, windows):
            domains_N = dataset.domain_ids[found.windows.targets]
            nats_D += np.bincount(domains_N, weights=found.nats().astype(np.float64), minlength=len(nats_D))
            tokens_D += np.bincount(domains_N, minlength=len(nats_D))
            if progress is not None:
                progress("scoring", int(tokens_D.sum()), total)
    finally:
        model.train(was_training)
    return _report(dataset, nats_D, tokens_D)


def scored_windows(dataset: TokenDataset, seq_len: int, batch_size: int = EVALUATION_BATCH) -> Iterator[WindowBatch]:
    """The windows in which every text token of `dataset` is scored once."""
    return window_batches(dataset, seq_len, every_token=False, tokens_per_batch=batch_size * seq_len, by_length=True)


def unigram_nats(token_counts: np.ndarray, dataset: TokenDataset) -> float:
    """Nats per text token of `dataset` under training frequencies alone, add-one smoothed: p_v = (n_v + 1) / (N + V).

    `token_counts` [V] counts the tokens of the training split, n_v, with sum N. Raises ValueError when the dataset has
    no text token.
    """
    ids_T = dataset.token_ids[dataset.positions > 0]
    if not len(ids_T):
        raise ValueError("the dataset has no text token to score")
    return float(unigram_nats_by_token(token_counts)[ids_T].mean())


def unigram_nats_by_token(token_counts: np.ndarray) -> np.ndarray:
    """float64 [V] the same for each entry of the vocabulary."""
    counts_V = np.asarray(token_counts, dtype=np.float64)
    nats_V: np.ndarray = math.log(counts_V.sum() + len(counts_V)) - np.log(counts_V + 1.0)
    return nats_V


def count_text_tokens(dataset: TokenDataset) -> int:
    """Tokens that are scored: all but the end-of-text prefix (position 0) of each document."""
    return int((dataset.positions > 0).sum())


def _report(dataset: TokenDataset, nats_D: np.ndarray, tokens_D: np.ndarray) -> LossReport:
    tokens = int(tokens_D.sum())
    if not tokens:
        raise ValueError("the dataset has no text token to score")
    nats = float(nats_D.sum())
    mean = nats / tokens
    return LossReport(
        nats_per_token=mean,
        perplexity=math.exp(mean) if mean < 700 else math.inf,
        bits_per_byte=nats / math.log(2) / int(dataset.domain_bytes.sum()),
        by_domain={
            domain: float(nats_D[i] / tokens_D[i]) for i, domain in enumerate(dataset.domains) if tokens_D[i] > 0
        },
        tokens=tokens,
    )
