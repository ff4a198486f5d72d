"""The stacked gated experts (arXiv:2002.05202) of one MoE layer, and the one place that chooses how they are visited.

Measured in docs/BENCHMARKS.md (moe_layer) and docs/LOG.md (dispatch).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from moe_core.config.tree import ActivationName, NullOutput
from moe_core.model.activation import ACTIVATIONS, Activation
from moe_core.model.experts.dropout import with_dropout
from moe_core.model.experts.grouped import grouped_product
from moe_core.model.experts.one_token import one_token
from moe_core.model.experts.slices import sorted_slices

Way = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Activation], Tensor]
"""(x [T, D], scores [T, K], indices [T, K], gate, up [E, F, D], down [E, D, F], activation) -> [T, D]."""
FEW_ROWS = 384
"""Where gradients are wanted in float32 and an expert has fewer rows than this, on average, one grouped call is faster
on a CPU than slices; in half precision it is with any number of rows, as measured (docs/LOG.md, dispatch)."""


class Experts(nn.Module):
    """E networks down(activation(gate x) * up x); gate_proj and up_proj [E, F, D], down_proj [E, D, F].

    With `null_output`, indices from E on are null experts, which compute nothing: their output is zero, or their input.
    `is_moe_experts` promises interventions: forward(x_TD, scores_TK, indices_TK), each token on its own, -1 = unused.
    """

    is_moe_experts = True

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        num_experts: int,
        hidden_dropout: float = 0.0,
        activation: ActivationName = "silu",
        null_output: NullOutput | None = None,
    ) -> None:
        super().__init__()
        self._null_output = null_output
        self._activation = ACTIVATIONS[activation]
        self.hidden_dropout = hidden_dropout
        self.gate_proj = nn.Parameter(torch.empty(num_experts, hidden_dim, dim))
        self.up_proj = nn.Parameter(torch.empty(num_experts, hidden_dim, dim))
        self.down_proj = nn.Parameter(torch.empty(num_experts, dim, hidden_dim))

    def forward(self, x_TD: Tensor, scores_TK: Tensor, indices_TK: Tensor) -> Tensor:
        """sum_k scores[t, k] * expert[indices[t, k]](x[t]) -> [T, D]; slots with index -1 add nothing."""
        if self._null_output is not None:
            null_TK = indices_TK >= len(self.gate_proj)
            out_TD = self._networks(x_TD, scores_TK.masked_fill(null_TK, 0.0), indices_TK.masked_fill(null_TK, -1))
            if self._null_output == "identity":
                kept_T1 = scores_TK.masked_fill(~null_TK, 0.0).sum(dim=-1, keepdim=True)
                out_TD = out_TD + kept_T1.to(out_TD.dtype) * x_TD.to(out_TD.dtype)
            return out_TD
        return self._networks(x_TD, scores_TK, indices_TK)

    def _networks(self, x_TD: Tensor, scores_TK: Tensor, indices_TK: Tensor) -> Tensor:
        """The same without null experts."""
        return self.visit(x_TD, scores_TK, indices_TK, self.gate_proj, self.up_proj, self.down_proj)

    def visit(
        self, x_TD: Tensor, scores_TK: Tensor, indices_TK: Tensor, gate: Tensor, up: Tensor, down: Tensor
    ) -> Tensor:
        """The same with the weights of these experts."""
        device = x_TD.device.type
        if torch.is_autocast_enabled(device):
            x_TD = x_TD.to(torch.get_autocast_dtype(device))
        visit = way(x_TD, indices_TK, gate)
        if self.training and self.hidden_dropout > 0:
            visit = partial(with_dropout, probability=self.hidden_dropout)
        if visit is not grouped_product:  # which casts weights as it needs them
            gate, up, down = (weight.to(x_TD.dtype) for weight in (gate, up, down))
        return visit(x_TD, scores_TK.to(x_TD.dtype), indices_TK, gate, up, down, self._activation)


def way(x_TD: Tensor, indices_TK: Tensor, gate: Tensor) -> Way:
    """The way to visit the experts, chosen by device, number of tokens and whether gradients are wanted."""
    # grouped_mm needs rows that start at multiples of 16 bytes, and does not take double precision.
    can_group = x_TD.element_size() < 8 and all(width * x_TD.element_size() % 16 == 0 for width in gate.shape[1:])
    if x_TD.is_cuda and can_group:
        return grouped_product
    if not torch.is_grad_enabled():
        return one_token if len(x_TD) == 1 else sorted_slices
    is_faster = x_TD.element_size() < 4 or indices_TK.numel() < FEW_ROWS * len(gate)
    return grouped_product if can_group and is_faster else sorted_slices
