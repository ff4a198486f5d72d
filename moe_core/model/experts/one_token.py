"""Decoding one token: the chosen experts, one after the other, on views of the stacked weights."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.model.activation import SILU, Activation
from moe_core.model.one_row import gated_product, twin


def one_token(
    x_1D: Tensor,
    scores_1K: Tensor,
    indices_1K: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    activation: Activation = SILU,
) -> Tensor:
    """See Way; T = 1, no gradient. Sorting, or gathering weights, would cost more than the work."""
    out_D = torch.zeros_like(x_1D[0])
    twin_D2 = twin(x_1D)
    for expert, score in zip(indices_1K[0].tolist(), scores_1K[0].tolist(), strict=True):
        if expert >= 0:
            out_D.add_(gated_product(twin_D2, gate[expert], up[expert], down[expert], activation), alpha=score)
    return out_D[None]
