"""Every token of a text with how well the model foresaw it, in the windows of `evaluate_loss`. T: scored tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moe_core.data.tokens import TokenDataset, document_batches
from moe_core.evaluation.loss import EVALUATION_BATCH, count_text_tokens
from moe_core.evaluation.tasks.scores import Score, of_sources
from moe_core.inference.protocol import LanguageModel
from moe_core.progress import Progress, silent


@dataclass(frozen=True, eq=False)
class ScoredTokens:
    """The scored tokens of one split, documents in the order of their windows."""

    nats: NDArray[np.float64]
    """[T] -ln of the token's probability; their mean is that of evaluate_loss."""
    ranks: NDArray[np.int64]
    """[T] place among the model's guesses, 1 = the likeliest; of equal ones the lower id comes first."""
    token_ids: NDArray[np.int64]
    """[T]"""
    source_ids: NDArray[np.int32]
    """[T]"""
    domain_ids: NDArray[np.int16]
    """[T] index into `domains`."""
    domains: tuple[str, ...]
    domain_bytes: NDArray[np.int64]
    """[len(domains)] UTF-8 bytes of the text."""

    def score(
        self,
        name: str,
        loss_T: NDArray[Any],
        chance_T: NDArray[Any],
        level_is: str,
        *,
        domain: str | None = None,
        exponential: bool = False,
        best: float = 0.0,
    ) -> Score:
        """The mean of loss_T [T] over all tokens, or those of `domain`, against that of chance_T; see of_sources."""
        own_T = slice(None) if domain is None else self.domain_ids == self.domains.index(domain)
        keys_T = self.source_ids[own_T].astype(np.int64) * len(self.domains) + self.domain_ids[own_T]
        keys_C, of_token = np.unique(keys_T, return_inverse=True)

        def summed(values_T: NDArray[Any] | None) -> NDArray[np.float64]:
            return np.bincount(of_token, weights=None if values_T is None else values_T[own_T]).astype(np.float64)

        return of_sources(
            name,
            summed(loss_T),
            summed(chance_T),
            summed(None),
            keys_C % len(self.domains),
            level_is,
            exponential=exponential,
            best=best,
        )


def score_tokens(
    model: LanguageModel, dataset: TokenDataset, *, seq_len: int, progress: Progress | None = None
) -> ScoredTokens:
    """Read `dataset` once; every text token is scored. Raises ValueError when it has none."""
    report, total, done = progress or silent, count_text_tokens(dataset), 0
    if not total:
        raise ValueError("the dataset has no text token to score")
    parts: list[tuple[NDArray[Any], ...]] = []
    for batch in document_batches(dataset, seq_len=seq_len, batch_size=EVALUATION_BATCH):
        with torch.inference_mode():
            logits_BSV = model.logits(torch.from_numpy(batch.token_ids).to(model.device))
            found = list(_by_sequence(logits_BSV, torch.from_numpy(batch.targets).to(logits_BSV.device)))
        mask = batch.mask
        nats, ranks = (np.concatenate(column) for column in zip(*found, strict=True))
        parts.append((nats, ranks, batch.targets[mask], batch.source_ids[mask], batch.domain_ids[mask]))
        done += int(mask.sum())
        report("reading", done, total)
    joined = (np.concatenate(column) for column in zip(*parts, strict=True))
    all_nats, all_ranks, token_ids, source_ids, domain_ids = joined
    return ScoredTokens(all_nats, all_ranks, token_ids, source_ids, domain_ids, dataset.domains, dataset.domain_bytes)


def _by_sequence(
    logits_BSV: torch.Tensor, targets_BS: torch.Tensor
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """(nats, ranks) of the scored targets of each sequence, so that only one has its logits twice in memory."""
    ids_V = torch.arange(logits_BSV.shape[-1], device=logits_BSV.device)
    for logits_SV, targets_S in zip(logits_BSV, targets_BS, strict=True):
        kept_S = targets_S >= 0
        logits_TV, targets_T1 = logits_SV[kept_S].float(), targets_S[kept_S, None]
        own_T1 = logits_TV.gather(1, targets_T1)
        nats_T = logits_TV.logsumexp(1) - own_T1[:, 0]
        before_TV = (logits_TV > own_T1) | ((logits_TV == own_T1) & (ids_V < targets_T1))
        yield nats_T.double().cpu().numpy(), (1 + before_TV.sum(1)).cpu().numpy()


def unigram_nats_of(token_counts: NDArray[np.int64]) -> Callable[[NDArray[np.int64]], NDArray[np.float64]]:
    """Nats of tokens under training frequencies alone, add-one smoothed, as evaluation's unigram_nats means them."""
    counts_V = token_counts.astype(np.float64) + 1.0
    nats_V = np.log(counts_V.sum()) - np.log(counts_V)
    return lambda token_ids: nats_V[token_ids]
