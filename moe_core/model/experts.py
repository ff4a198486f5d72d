"""The stacked SwiGLU experts (arXiv:2002.05202) of one MoE layer, and the one place that dispatches to them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Spans = list[tuple[int, slice]]
"""(expert, its rows) for every expert that has any; rows sorted by expert."""


class Experts(nn.Module):
    """E networks down(silu(gate x) * up x); gate_proj and up_proj [E, F, D], down_proj [E, D, F].

    `is_moe_experts` promises interventions: forward(x_TD, scores_TK, indices_TK), each token on its own, -1 = unused.
    """

    is_moe_experts = True

    def __init__(self, dim: int, hidden_dim: int, num_experts: int) -> None:
        super().__init__()
        self.gate_proj = nn.Parameter(torch.empty(num_experts, hidden_dim, dim))
        self.up_proj = nn.Parameter(torch.empty(num_experts, hidden_dim, dim))
        self.down_proj = nn.Parameter(torch.empty(num_experts, dim, hidden_dim))

    def forward(self, x_TD: Tensor, scores_TK: Tensor, indices_TK: Tensor) -> Tensor:
        """sum_k scores[t, k] * expert[indices[t, k]](x[t]) -> [T, D]; slots with index -1 add nothing."""
        weights: tuple[Tensor, ...] = (self.gate_proj, self.up_proj, self.down_proj)
        device = x_TD.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            x_TD, weights = x_TD.to(dtype), tuple(weight.to(dtype) for weight in weights)
        if len(x_TD) == 1 and not torch.is_grad_enabled():
            return _one_token(x_TD, scores_TK, indices_TK, *weights)
        slots_N, spans = _sort_by_expert(indices_TK, len(self.gate_proj))
        tokens_N = slots_N.div(indices_TK.shape[1], rounding_mode="floor")
        scores_N = scores_TK.flatten().gather(0, slots_N).to(x_TD.dtype)
        out_TD: Tensor = _GroupedSwiGLU.apply(x_TD, scores_N, *weights, tokens_N, spans)  # type: ignore[no-untyped-call]
        return out_TD


def _one_token(x_1D: Tensor, scores_1K: Tensor, indices_1K: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Decoding: visit the chosen experts on views; sorting, or gathering weights, would cost more than the work."""
    out_1D = torch.zeros_like(x_1D)
    for expert, score in zip(indices_1K[0].tolist(), scores_1K[0].tolist(), strict=True):
        if expert >= 0:
            hidden = nn.functional.silu(nn.functional.linear(x_1D, gate[expert])) * nn.functional.linear(
                x_1D, up[expert]
            )
            out_1D.add_(nn.functional.linear(hidden, down[expert]), alpha=score)
    return out_1D


def _sort_by_expert(indices_TK: Tensor, num_experts: int) -> tuple[Tensor, Spans]:
    """Used slots (t * K + k) [N] ordered by expert, then by token; and each visited expert's rows among them."""
    indices_N = indices_TK.flatten()
    unused, *counts = torch.bincount(indices_N + 1, minlength=num_experts + 1).tolist()
    slots_N = indices_N.argsort(stable=True)[unused:]
    spans: Spans = []
    start = 0
    for expert, count in enumerate(counts):
        if count:
            spans.append((expert, slice(start, start + count)))
            start += count
    return slots_N, spans


class _GroupedSwiGLU(torch.autograd.Function):
    """out[tokens[n]] += scores[n] * expert_of_n(x[tokens[n]]), rows n grouped by expert.

    Forward and backward by hand: every product is written straight into its slice of one buffer. Autograd over the
    same slices copies them together again, and indexing a stacked [E, ...] parameter per expert gives each expert a
    full-size gradient, O(E^2) memory traffic.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        scores_N: Tensor,
        gate: Tensor,
        up: Tensor,
        down: Tensor,
        tokens_N: Tensor,
        spans: Spans,
    ) -> Tensor:
        x_ND = x_TD.index_select(0, tokens_N)
        gate_NF, up_NF = (x_ND.new_empty(len(x_ND), gate.shape[1]) for _ in range(2))
        for expert, rows in spans:
            torch.mm(x_ND[rows], gate[expert].t(), out=gate_NF[rows])
            torch.mm(x_ND[rows], up[expert].t(), out=up_NF[rows])
        silu_NF = nn.functional.silu(gate_NF)
        hidden_NF = silu_NF * up_NF
        y_ND = torch.empty_like(x_ND)
        for expert, rows in spans:
            torch.mm(hidden_NF[rows], down[expert].t(), out=y_ND[rows])
        ctx.save_for_backward(x_ND, scores_N, gate, up, down, tokens_N, gate_NF, up_NF, silu_NF, hidden_NF, y_ND)
        ctx.spans = spans
        return torch.zeros_like(x_TD).index_add_(0, tokens_N, y_ND * scores_N[:, None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out_TD: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, scores_N, gate, up, down, tokens_N, gate_NF, up_NF, silu_NF, hidden_NF, y_ND = ctx.saved_tensors
        # An expert without tokens has gradient zero; the others' are overwritten whole.
        new = torch.empty_like if len(ctx.spans) == len(gate) else torch.zeros_like
        d_gate, d_up, d_down = new(gate), new(up), new(down)
        d_y_ND = d_out_TD.index_select(0, tokens_N)
        d_scores_N = torch.linalg.vecdot(d_y_ND, y_ND)
        d_y_ND.mul_(scores_N[:, None])
        d_hidden_NF = torch.empty_like(hidden_NF)
        for expert, rows in ctx.spans:
            torch.mm(d_y_ND[rows], down[expert], out=d_hidden_NF[rows])
            torch.mm(d_y_ND[rows].t(), hidden_NF[rows], out=d_down[expert])
        d_up_NF = d_hidden_NF * silu_NF
        d_gate_NF = torch.ops.aten.silu_backward(d_hidden_NF.mul_(up_NF), gate_NF)
        d_x_ND = torch.empty_like(x_ND)
        for expert, rows in ctx.spans:
            torch.mm(d_gate_NF[rows], gate[expert], out=d_x_ND[rows])
            d_x_ND[rows].addmm_(d_up_NF[rows], up[expert])
            torch.mm(d_gate_NF[rows].t(), x_ND[rows], out=d_gate[expert])
            torch.mm(d_up_NF[rows].t(), x_ND[rows], out=d_up[expert])
        d_x_TD = torch.zeros_like(d_out_TD).index_add_(0, tokens_N, d_x_ND)
        return d_x_TD, d_scores_N, d_gate, d_up, d_down, None, None
