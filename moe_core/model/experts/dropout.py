"""Experts with dropout of their hidden units, one expert after the other, by autograd. Used in training only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_core.model.activation import SILU, Activation


def with_dropout(
    x_TD: Tensor,
    scores_TK: Tensor,
    indices_TK: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    activation: Activation = SILU,
    *,
    probability: float,
) -> Tensor:
    """See Way. A hidden unit of a token's expert is zeroed with this probability; the others grow to keep the mean.

    Switch's expert dropout (arXiv:2101.03961, sec. 2.4).
    """
    out_TD = torch.zeros_like(x_TD)
    # unbind instead of an index for each expert: its backward pass writes one gradient instead of E full ones.
    for expert, (gate_FD, up_FD, down_DF) in enumerate(zip(gate.unbind(), up.unbind(), down.unbind(), strict=True)):
        tokens_N, slots_N = (indices_TK == expert).nonzero(as_tuple=True)
        x_ND = x_TD.index_select(0, tokens_N)
        hidden_NF = activation.value(nn.functional.linear(x_ND, gate_FD)) * nn.functional.linear(x_ND, up_FD)
        y_ND = nn.functional.linear(nn.functional.dropout(hidden_NF, probability), down_DF)
        out_TD = out_TD.index_add(0, tokens_N, y_ND * scores_TK[tokens_N, slots_N, None])
    return out_TD
