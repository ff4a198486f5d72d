"""Noisy top-k gating."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_core.config.router import ROUTER_FACTS, RouterConfig
from moe_core.model.routers.base import RouterContext, RouterOutput, RouterShape
from moe_core.model.routers.top_k import TopKRouter

SMALLEST_STD = 0.01
"""Added to the learned deviation, which could vanish and leave the load without a gradient."""


class NoisyRouter(TopKRouter):
    """1. logits = W x + e * (softplus(W_n x) + 0.01), e ~ N(0, 1), while training; W x else  2. as TopKRouter.

    Shazeer et al., arXiv:1701.06538, eq. 3-5, who weigh by the softmax over the chosen (normalize_scores). While
    training it also tells the probability that each expert is among the K when its own noise alone is drawn again:
    Phi((W_i x - the K-th largest noisy logit of the others) / deviation_i), eq. 8-9, through which the load learns.
    """

    facts = ROUTER_FACTS["noisy"]

    def __init__(self, shape: RouterShape, config: RouterConfig | None = None) -> None:
        super().__init__(shape, config)
        self.noise_weight = nn.Parameter(torch.empty(shape.num_experts, shape.dim))

    def route(self, x_TD: Tensor, context: RouterContext | None) -> RouterOutput:
        """See Router.route."""
        if not self.training:
            return super().route(x_TD, context)
        clean_TE = self.logits(x_TD)
        spread_TE = nn.functional.linear(x_TD.to(self.noise_weight.dtype), self.noise_weight).float()
        std_TE = nn.functional.softplus(spread_TE) + SMALLEST_STD
        noisy_TE = clean_TE + torch.randn_like(clean_TE) * std_TE
        routed = self.decide_among_present(noisy_TE, context)
        probability_TE = self._load_probability(clean_TE, noisy_TE, std_TE, routed.wanted_indices)
        return routed.noting(load_probability=probability_TE)

    def _load_probability(
        self, clean_TE: Tensor, noisy_TE: Tensor, std_TE: Tensor, indices_TK: Tensor
    ) -> Tensor | None:
        """[T, E], of what was wanted; None where there is nothing to choose."""
        if self.top_k == self.num_experts:
            return None
        largest = noisy_TE.topk(self.top_k + 1, dim=-1).values
        chosen_TE = torch.zeros_like(noisy_TE, dtype=torch.bool).scatter_(-1, indices_TK, True)
        # Of the others: who is among the K himself must beat the (K+1)-th of all.
        threshold_TE = torch.where(chosen_TE, largest[:, -1:], largest[:, -2:-1])
        # Far beyond any noise the probability is 0 or 1.
        distance_TE = ((clean_TE - threshold_TE) / std_TE).clamp(-10.0, 10.0)
        probability_TE: Tensor = torch.special.ndtr(distance_TE)
        return probability_TE
