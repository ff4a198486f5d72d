"""Our model's reading of a text, window by window, and what a change of the states behind its last layer does to it.

Whatever is switched off, the text goes up the layers once; what is changed then enters where the change begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from moe_core.data.tokens import TokenDataset
from moe_core.data.windows import WindowBatch, window_batches
from moe_core.errors import RunError
from moe_core.inference.partial_forward import through
from moe_core.inference.scoring import token_nats

if TYPE_CHECKING:
    from torch import Tensor

    from moe_core.inference.own_model import OwnModel
    from moe_core.model.transformer import MoETransformer

_MAX_LOGITS = 2**22
"""Numbers of one matrix of logits: few enough to stay in a processor's cache."""


@dataclass(eq=False)
class WindowReading:
    """A batch of windows on its way up; N scored tokens, in the order of batch.scored."""

    batch: WindowBatch
    token_ids: Tensor
    """[B, S]"""
    state: Tensor
    """[B, S, D] the residual stream before the layer reached."""
    scored: Tensor
    """bool [B, S]: the next token is scored."""
    keep: Tensor
    """bool [B, S]: the token counts here."""
    targets: Tensor
    """[N] token ids."""
    hidden: Tensor
    """[N, D] what the head reads, nothing ablated."""
    losses: Tensor
    """[N] nats."""
    log_sums: Tensor
    """[N] logsumexp of the logits."""
    expected: Tensor
    """[N, D] the mean of the embedding rows under the prediction."""


def read_all_windows(own: OwnModel, dataset: TokenDataset) -> list[WindowReading]:
    """Every batch of windows at the bottom of the model. Raises RunError where the loss is not finite."""
    readings = [_read(own.model, dataset, batch) for batch in window_batches(dataset, own.context_window)]
    if not all(bool(torch.isfinite(reading.losses).all()) for reading in readings):
        raise RunError(f"the loss of {own.name} is not finite: its weights are damaged; train it again")
    return readings


def changes(model: MoETransformer, reading: WindowReading, which_N: Tensor, x_CD: Tensor) -> tuple[Tensor, Tensor]:
    """Change of loss and KL(original || changed), [C] nats each, of the scored tokens `which_N` (bool [N]) whose
    residual stream behind the last layer is `x_CD` now."""
    hidden_CD = model.norm(x_CD)
    losses, log_sums, _ = _losses_of_hidden(model, hidden_CD, reading.targets[which_N])
    # sum p (log p - log q) with log q = z - logsumexp z and z linear in hidden: p enters as its mean embedding only.
    moved = torch.linalg.vecdot(reading.expected[which_N], reading.hidden[which_N] - hidden_CD)
    kl = (moved + log_sums - reading.log_sums[which_N]).clamp(min=0.0)
    return losses - reading.losses[which_N], kl


def _read(model: MoETransformer, dataset: TokenDataset, batch: WindowBatch) -> WindowReading:
    """A batch at the bottom of the model, and what its top says with nothing ablated."""
    device = next(model.parameters()).device
    ids_BS = torch.from_numpy(dataset.token_ids[batch.index].astype(np.int64)).to(device)
    scored = torch.from_numpy(batch.scored).to(device)
    targets = torch.from_numpy(dataset.token_ids[batch.targets].astype(np.int64)).to(device)
    state: Tensor = model.embedding(ids_BS)
    hidden: Tensor = model.norm(through(model, state, 0, len(model.layers), ids_BS)[scored])
    losses, log_sums, expected = _losses_of_hidden(model, hidden, targets, with_expected=True)
    keep = torch.from_numpy(batch.keep).to(device)
    return WindowReading(batch, ids_BS, state, scored, keep, targets, hidden, losses, log_sums, expected)


def _losses_of_hidden(
    model: MoETransformer, hidden_ND: Tensor, targets_N: Tensor, *, with_expected: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [N], logsumexp of the logits [N], and, if asked for, the mean embedding [N, D] under the prediction."""
    losses, log_sums = hidden_ND.new_zeros(len(hidden_ND)), hidden_ND.new_zeros(len(hidden_ND))
    expected = torch.zeros_like(hidden_ND) if with_expected else hidden_ND.new_zeros(0)
    rows = max(1, _MAX_LOGITS // len(model.embedding.weight))
    for start in range(0, len(hidden_ND), rows):
        part = slice(start, start + rows)
        logits_NV = torch.nn.functional.linear(hidden_ND[part], model.embedding.weight)
        losses[part] = token_nats(logits_NV, targets_N[part])
        log_sums[part] = losses[part] + logits_NV.gather(1, targets_N[part, None])[:, 0]
        if with_expected:
            expected[part] = logits_NV.softmax(dim=-1) @ model.embedding.weight
    return losses, log_sums, expected
