"""Every token of a text with how well the model foresaw it, in the windows of `evaluate_loss`. T: scored tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_core.data.tokens import TokenDataset
from moe_core.evaluation.loss import count_text_tokens, scored_windows
from moe_core.evaluation.tasks.scores import Score, of_sources
from moe_core.inference.protocol import LanguageModel
from moe_core.inference.scoring import predictions
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
    for found in predictions(model.logits, model.device, dataset, scored_windows(dataset, seq_len)):
        at = found.windows.targets
        columns = (dataset.token_ids[at].astype(np.int64), dataset.source_ids[at], dataset.domain_ids[at])
        parts.append((found.nats().astype(np.float64), found.ranks().astype(np.int64), *columns))
        done += len(at)
        report("reading", done, total)
    joined = (np.concatenate(column) for column in zip(*parts, strict=True))
    nats, ranks, token_ids, source_ids, domain_ids = joined
    return ScoredTokens(nats, ranks, token_ids, source_ids, domain_ids, dataset.domains, dataset.domain_bytes)
