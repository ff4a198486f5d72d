"""Top-k routing: which experts a token visits and how much each counts (Mixtral, arXiv:2401.04088, sec. 2.1;
DeepSeek-V3, arXiv:2412.19437, sec. 2.1.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn


class RouterOutput(NamedTuple):
    """What a router decided; the contract that capture and interventions rely on."""

    router_logits: Tensor
    """float32 [T, E], before the softmax or sigmoid, noise included."""
    router_scores: Tensor
    """float32 [T, K], weights of the chosen experts, largest first; 0 in an unused slot."""
    router_indices: Tensor
    """int64 [T, K], chosen experts, different within a token; -1 = unused slot (its expert was full)."""


class TopKRouter(nn.Module):
    """1. logits = W x (+ noise while training)  2. p = softmax(logits) or sigmoid(logits), in float32
    3. keep the K largest  4. divide by their sum, if asked and K > 1  5. while training, drop what exceeds an expert's
    capacity.

    NOTE: a sigmoid router selects by p + expert_bias, but weighs by p alone. The bias learns no gradient; update_bias
    moves it so that the load evens out (loss-free balancing, arXiv:2408.15664).

    Among equal logits the expert with the smaller index wins. A single expert keeps its p_i as weight: divided by
    itself it would be 1, and the loss would send the router no gradient (Switch, arXiv:2101.03961, eq. 2).
    """

    is_moe_router = True
    expert_bias: Tensor | None

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int,
        *,
        kind: Literal["softmax", "sigmoid"] = "softmax",
        normalize_scores: bool = True,
        noise_std: float = 0.0,
        capacity_factor: float | None = None,
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.top_k = top_k
        self.score_function = kind
        self.normalize_scores = normalize_scores
        self.noise_std = noise_std
        self.capacity_factor = capacity_factor
        self.weight = nn.Parameter(torch.empty(num_experts, dim))
        self.register_buffer("expert_bias", torch.zeros(num_experts) if kind == "sigmoid" else None)

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

    def choose(self, logits_TE: Tensor, top_k: int, forced: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Steps 2 to 4 for given logits [T, E] and 1 <= top_k <= E: scores [T, top_k] and indices [T, top_k].

        Interventions choose again with it. Weights are divided by their sum if the router was built to do so, whatever
        `top_k` is asked for: the experts were trained at that scale. An expert of logit -inf comes after all others.
        `forced` experts, at most top_k, have the largest logits; they are chosen whatever their bias.
        """
        normalized = self.normalize_scores and self.top_k > 1
        # Chosen by logits, not probabilities: these underflow to equal zeros when one logit towers above the rest.
        order_TE = logits_TE.detach().sort(dim=-1, descending=True, stable=True).indices
        if self.expert_bias is not None:
            return self._choose_biased(logits_TE, order_TE, top_k, forced, normalized)
        indices_TK = order_TE[:, :top_k]
        if normalized:
            # softmax over the chosen = softmax over all, divided by the chosen's sum, in half the steps.
            return logits_TE.gather(-1, indices_TK).softmax(dim=-1), indices_TK
        return logits_TE.softmax(dim=-1).gather(-1, indices_TK), indices_TK

    @torch.no_grad()
    def update_bias(self, indices_TK: Tensor, speed: float) -> None:
        """expert_bias += speed * sign(mean tokens per expert - this expert's), from the choices of one training step
        (arXiv:2408.15664, algorithm 1). Without a bias nothing happens."""
        if self.expert_bias is not None and speed > 0:
            counts_E = torch.bincount(indices_TK.flatten() + 1, minlength=self.num_experts + 1)[1:].float()
            self.expert_bias += speed * torch.sign(counts_E.mean() - counts_E)

    def _choose_biased(
        self, logits_TE: Tensor, order_TE: Tensor, top_k: int, forced: Sequence[int], normalized: bool
    ) -> tuple[Tensor, Tensor]:
        """The same by sigmoid(logit) + expert_bias; `order_TE`, by logit, decides where sigmoids saturate to equals."""
        assert self.expert_bias is not None
        scores_TE = logits_TE.sigmoid()
        selection_TE = (scores_TE.detach() + self.expert_bias.float()).masked_fill(logits_TE == -math.inf, -math.inf)
        selection_TE[:, list(forced)] = math.inf
        rank_TE = selection_TE.gather(-1, order_TE).sort(dim=-1, descending=True, stable=True).indices
        chosen_TE = torch.zeros_like(logits_TE, dtype=torch.bool)
        chosen_TE.scatter_(-1, order_TE.gather(-1, rank_TE[:, :top_k]), True)
        # The chosen in the order of their logits, hence of their weights.
        indices_TK = order_TE[chosen_TE.gather(-1, order_TE)].view(-1, top_k)
        scores_TK = scores_TE.gather(-1, indices_TK)
        if normalized:
            # As shares by way of logarithms: sigmoids of very negative logits underflow to zeros.
            scores_TK = nn.functional.logsigmoid(logits_TE.gather(-1, indices_TK)).softmax(dim=-1)
        return scores_TK, indices_TK

    def _within_capacity(self, indices_TK: Tensor) -> Tensor:
        """bool [T, K]: is this token among the first ceil(capacity_factor * T * K / E) that chose this expert?"""
        T, K = indices_TK.shape
        assert self.capacity_factor is not None
        capacity = math.ceil(self.capacity_factor * T * K / self.num_experts)
        chosen_TE = torch.zeros(T, self.num_experts, dtype=torch.int64, device=indices_TK.device)
        rank_TE = chosen_TE.scatter_(1, indices_TK, 1).cumsum(dim=0)
        return rank_TE.gather(1, indices_TK) <= capacity
