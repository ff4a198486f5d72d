"""Top-k routing: which experts a token visits and how much each counts (Mixtral, arXiv:2401.04088, sec. 2.1)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class RouterOutput(NamedTuple):
    """What a router decided; the contract that capture and interventions rely on."""

    router_logits: Tensor
    """float32 [T, E], before the softmax, noise included."""
    router_scores: Tensor
    """float32 [T, K], weights of the chosen experts, largest first; 0 in an unused slot."""
    router_indices: Tensor
    """int64 [T, K], chosen experts, different within a token; -1 = unused slot (its expert was full)."""


class TopKRouter(nn.Module):
    """1. logits = W x (+ noise while training)  2. p = softmax(logits) in float32  3. keep the K largest
    4. divide by their sum, if asked and K > 1  5. while training, drop what exceeds an expert's capacity.

    Among equal logits the expert with the smaller index wins. A single expert keeps its p_i as weight: divided by
    itself it would be 1, and the loss would send the router no gradient (Switch, arXiv:2101.03961, eq. 2).
    """

    is_moe_router = True
    score_function = "softmax"

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int,
        *,
        normalize_scores: bool = True,
        noise_std: float = 0.0,
        capacity_factor: float | None = None,
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.top_k = top_k
        self.normalize_scores = normalize_scores
        self.noise_std = noise_std
        self.capacity_factor = capacity_factor
        self.weight = nn.Parameter(torch.empty(num_experts, dim))

    def forward(self, x_TD: Tensor) -> RouterOutput:
        """Route T tokens: x_TD [T, D] -> RouterOutput."""
        # Autocast would round the logits to bfloat16, where a tie between experts is common.
        with torch.autocast(x_TD.device.type, enabled=False):
            logits_TE = nn.functional.linear(x_TD.to(self.weight.dtype), self.weight).float()
            if self.training and self.noise_std > 0:
                logits_TE = logits_TE + self.noise_std * torch.randn_like(logits_TE)
            scores_TK, indices_TK = self.choose(logits_TE, self.top_k)
        if self.training and self.capacity_factor is not None:
            kept_TK = self._within_capacity(indices_TK)
            scores_TK = scores_TK.masked_fill(~kept_TK, 0.0)
            indices_TK = indices_TK.masked_fill(~kept_TK, -1)
        return RouterOutput(logits_TE, scores_TK, indices_TK)

    def choose(self, logits_TE: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        """Steps 2 to 4 for given logits [T, E] and 1 <= top_k <= E: scores [T, top_k] and indices [T, top_k].

        Interventions choose again with it. Weights are divided by their sum if the router was built to do so, whatever
        `top_k` is asked for: the experts were trained at that scale.
        """
        # Chosen by logits, not probabilities: these underflow to equal zeros when one logit towers above the rest.
        indices_TK = logits_TE.detach().sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
        if self.normalize_scores and self.top_k > 1:
            # softmax over the chosen = softmax over all, divided by the chosen's sum, in half the steps.
            return logits_TE.gather(-1, indices_TK).softmax(dim=-1), indices_TK
        return logits_TE.softmax(dim=-1).gather(-1, indices_TK), indices_TK

    def _within_capacity(self, indices_TK: Tensor) -> Tensor:
        """bool [T, K]: is this token among the first ceil(capacity_factor * T * K / E) that chose this expert?"""
        T, K = indices_TK.shape
        assert self.capacity_factor is not None
        capacity = math.ceil(self.capacity_factor * T * K / self.num_experts)
        chosen_TE = torch.zeros(T, self.num_experts, dtype=torch.int64, device=indices_TK.device)
        rank_TE = chosen_TE.scatter_(1, indices_TK, 1).cumsum(dim=0)
        return rank_TE.gather(1, indices_TK) <= capacity
