"""The loss of a whole and of a pruned model on the same text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe_core.data.tokens import TokenDataset
from moe_core.data.windows import window_batches
from moe_core.evaluation.effects import SourceBootstrap
from moe_core.inference.protocol import LanguageModel
from moe_core.inference.scoring import predictions
from moe_core.progress import Progress
from moe_core.routing.trace.types import Float32Array


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
    losses = [_losses(model, text, before.context_window, progress) for model in (before, after)]
    row = bootstrap.means_of_sums(bootstrap.sums(losses[1] - losses[0]))[0]
    mean = float(losses[0][text.positions > 0].mean(dtype=np.float64))
    return PairedLoss(mean, row["delta_nats"], row["low"], row["high"], row["tokens"])


def _losses(model: LanguageModel, text: TokenDataset, window: int, progress: Progress) -> Float32Array:
    """[T] nats; 0 where nothing is scored."""
    losses_T = np.zeros(len(text), np.float32)
    for found in predictions(model.logits, model.device, text, window_batches(text, window)):
        losses_T[found.windows.targets] = found.nats()
        progress("scoring", int(found.windows.targets.max(initial=0)) + 1, len(text))
    return losses_T
