"""The two kinds of feed-forward block: dense, and Mixture of Experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_core.config import ModelConfig
from moe_core.config.tree import ActivationName
from moe_core.model import one_row
from moe_core.model.activation import ACTIVATIONS
from moe_core.model.experts import Experts
from moe_core.model.routers import RouterContext, RouterOutput, build_router


class GatedLinearUnit(nn.Module):
    """down(activation(gate x) * up x), one dense network (arXiv:2002.05202, eq. 6)."""

    def __init__(self, dim: int, hidden_dim: int, activation: ActivationName = "silu") -> None:
        super().__init__()
        self._activation = ACTIVATIONS[activation]
        self.gate_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.up_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.down_proj = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        if one_row.alone(x):
            weights = self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight
            return one_row.gated_product(one_row.twin(x), *weights, self._activation).view_as(x)
        out: Tensor = self.down_proj(self._activation.value(self.gate_proj(x)) * self.up_proj(x))
        return out


class MoE(nn.Module):
    """1. the router picks K of E experts per token  2. their weighted outputs are summed  3. an optional shared expert,
    which every token passes and the router does not see, is added, scaled by sigmoid(w x) if it has a gate.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.router = build_router(config)
        # Not asked of the router, which an adapter may have wrapped.
        self._reads_context = config.router.facts.reads_context
        self.experts = Experts(
            config.dim,
            config.expert_hidden_dim,
            config.num_experts,
            config.expert_hidden_dropout,
            config.expert_activation,
            config.null_output if config.null_experts else None,
        )
        # The last of the router's choices; traces keep how many.
        self.router.null_experts = config.null_experts
        shared = config.shared_expert_hidden_dim
        self.shared_expert = GatedLinearUnit(config.dim, shared, config.expert_activation) if shared else None
        self.shared_expert_gate = nn.Linear(config.dim, 1, bias=False) if shared and config.shared_expert_gate else None

    def forward(self, x_TD: Tensor, context: RouterContext | None = None) -> tuple[Tensor, RouterOutput]:
        """[T, D] -> ([T, D], what the router chose); only a router with reads_context needs the context."""
        routed = self.router(x_TD, context) if self._reads_context else self.router(x_TD)
        if not isinstance(routed, RouterOutput):  # A hook has replaced the output by a plain tuple.
            routed = RouterOutput(*routed)
        out_TD: Tensor = self.experts(x_TD, routed.router_scores, routed.router_indices)
        if self.shared_expert is not None:
            shared_TD = self.shared_expert(x_TD)
            if self.shared_expert_gate is not None:
                shared_TD = torch.sigmoid(self.shared_expert_gate(x_TD)) * shared_TD
            out_TD = out_TD + shared_TD
        return out_TD, routed
