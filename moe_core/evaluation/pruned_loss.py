"""The loss of a whole and of a pruned model on the same text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe_core.data.tokens import TokenDataset
from moe_core.evaluation.effects import SourceBootstrap
from moe_core.inference.protocol import LanguageModel
from moe_core.inference.scoring import losses_of
from moe_core.progress import Progress


@dataclass(frozen=True)
class PairedLoss:
    """Nats per token, all text."""

    before: float
    change: float
    """After less before."""
    low: float
    high: float
    """Its 95 % interval over sources, in pairs; NaN with fewer than two."""
    tokens: int


def paired_loss(before: LanguageModel, after: LanguageModel, text: TokenDataset, progress: Progress) -> PairedLoss:
    """Read `text` with both, in the windows of the first."""
    bootstrap = SourceBootstrap(text.source_ids, text.domain_ids, text.domains, text.positions > 0)
    losses = [
        losses_of(model, text, before.context_window, lambda read: progress("scoring", read, len(text)))
        for model in (before, after)
    ]
    row = bootstrap.means_of_sums(bootstrap.sums(losses[1] - losses[0]))[0]
    mean = float(losses[0][text.positions > 0].mean(dtype=np.float64))
    return PairedLoss(mean, row["delta_nats"], row["low"], row["high"], row["tokens"])
