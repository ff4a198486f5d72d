"""The stacked SwiGLU experts (arXiv:2002.05202) of one MoE layer, and the one place that dispatches to them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Experts(nn.Module):
    """E networks down(silu(gate x) * up x); gate_proj and up_proj [E, F, D], down_proj [E, D, F]."""

    def __init__(self, dim: int, hidden_dim: int, num_experts: int) -> None:
        super().__init__()
        self.gate_proj = nn.Parameter(torch.empty(num_experts, hidden_dim, dim))
        self.up_proj = nn.Parameter(torch.empty(num_experts, hidden_dim, dim))
        self.down_proj = nn.Parameter(torch.empty(num_experts, dim, hidden_dim))

    def forward(self, x_TD: Tensor, scores_TK: Tensor, indices_TK: Tensor) -> Tensor:
        """sum_k scores[t, k] * expert[indices[t, k]](x[t]) -> [T, D]; slots with index -1 add nothing."""
        K = indices_TK.shape[1]
        # N = T * K slots sorted by expert; unused slots (-1) come first and are cut off.
        experts_N, slots_N = indices_TK.flatten().sort(stable=True)
        ends_E = torch.searchsorted(
            experts_N, torch.arange(-1, self.gate_proj.shape[0], device=x_TD.device), right=True
        )
        sizes = ends_E.diff(prepend=ends_E.new_zeros(1)).tolist()
        slots_N = slots_N[sizes[0] :]
        tokens_N = slots_N.div(K, rounding_mode="floor")
        groups = torch.split(x_TD[tokens_N], sizes[1:])
        outputs = [
            nn.functional.linear(nn.functional.silu(nn.functional.linear(x, gate)) * nn.functional.linear(x, up), down)
            for x, gate, up, down in zip(
                groups, self.gate_proj.unbind(0), self.up_proj.unbind(0), self.down_proj.unbind(0), strict=True
            )
        ]
        weights_N = scores_TK.flatten()[slots_N].to(x_TD.dtype)
        return torch.zeros_like(x_TD).index_add(0, tokens_N, (torch.cat(outputs) * weights_N[:, None]).to(x_TD.dtype))
