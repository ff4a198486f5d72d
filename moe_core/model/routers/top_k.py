"""Top-k routers: softmax and sigmoid, each with or without a bias that only selection sees."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moe_core.config.router import ROUTER_FACTS, RouterConfig
from moe_core.model.routers.base import Router, RouterOutput, RouterShape, by_logit, tokens_per_expert


class TopKRouter(Router):
    """1. p = softmax(W x)  2. T = the K largest p + b  3. w = p_T, divided by its sum if asked and K > 1.

    Without b: Switch (arXiv:2101.03961), Mixtral (arXiv:2401.04088, sec. 2.1; divided), OLMoE (arXiv:2409.02060; not).
    NOTE: the bias b selects, it never weighs. It learns no gradient: after a step b_i += u sign(mean load - load_i)
    (loss-free balancing, arXiv:2408.15664, algorithm 1; with a softmax: ERNIE 4.5).

    Among equal logits the expert with the smaller index wins. A single expert keeps its p_i as weight: divided by
    itself it would be 1, and the loss would send the router no gradient (Switch, eq. 2).
    """

    facts = ROUTER_FACTS["softmax"]
    expert_bias: Tensor | None

    def __init__(self, shape: RouterShape, config: RouterConfig | None = None) -> None:
        super().__init__(shape, config)
        bias_E = torch.zeros(shape.num_experts, dtype=torch.float32) if self.config.has_bias else None
        self.register_buffer("expert_bias", bias_E)

    def choose(self, logits_TE: Tensor, top_k: int, forced: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """See Router.choose."""
        order_TE = by_logit(logits_TE)
        indices_TK = (
            order_TE[:, :top_k]
            if self.expert_bias is None
            else self._select_by_bias(logits_TE, order_TE, top_k, forced)
        )
        return self.weigh(logits_TE, indices_TK), indices_TK

    def weigh(self, logits_TE: Tensor, indices_TK: Tensor) -> Tensor:
        """[T, top_k] step 3, all slots used."""
        if self.normalize_scores and self.top_k > 1:
            # softmax over the chosen = softmax over all, divided by the chosen's sum, in half the steps.
            return logits_TE.gather(-1, indices_TK).softmax(dim=-1)
        return self.probabilities(logits_TE).gather(-1, indices_TK)

    def probabilities(self, logits_TE: Tensor) -> Tensor:
        """[T, E] p of step 1."""
        return logits_TE.softmax(dim=-1)

    @torch.no_grad()
    def after_step(self, routed: RouterOutput) -> None:
        """Move the bias against the load that was wanted."""
        if self.expert_bias is not None and self.config.balances_by == "bias":
            counts_E = self.all_tokens.add_up(tokens_per_expert(routed.wanted_indices, self.num_experts)).float()
            mean = counts_E.mean() if self.removed is None else counts_E.sum() / (~self.removed).sum()
            self.expert_bias += self.config.bias_update_speed * torch.sign(mean - counts_E)

    def _select_by_bias(self, logits_TE: Tensor, order_TE: Tensor, top_k: int, forced: Sequence[int]) -> Tensor:
        """[T, top_k] the largest p + b; `order_TE`, by logit, decides where p saturates to equals."""
        assert self.expert_bias is not None
        selection_TE = self.probabilities(logits_TE.detach()) + self.expert_bias.float()
        selection_TE = selection_TE.masked_fill(logits_TE == -math.inf, -math.inf)
        if forced:
            selection_TE[:, list(forced)] = math.inf
        rank_TE = selection_TE.gather(-1, order_TE).sort(dim=-1, descending=True, stable=True).indices
        # The chosen in the order of their logits, hence of their weights.
        return order_TE.gather(-1, rank_TE[:, :top_k].sort(dim=-1).values)


class SigmoidRouter(TopKRouter):
    """1. p_i = sigmoid(W_i x), each expert by itself  2. and 3. as TopKRouter, with a bias in every checkpoint.

    DeepSeek-V3 (arXiv:2412.19437, sec. 2.1.2), GLM-4.5. The bias moves only under balancing = bias, its usual one.
    """

    facts = ROUTER_FACTS["sigmoid"]

    def weigh(self, logits_TE: Tensor, indices_TK: Tensor) -> Tensor:
        """[T, top_k] step 3, all slots used."""
        chosen_TK = logits_TE.gather(-1, indices_TK)
        if self.normalize_scores and self.top_k > 1:
            # As shares by way of logarithms: sigmoids of very negative logits underflow to zeros.
            return nn.functional.logsigmoid(chosen_TK).softmax(dim=-1)
        return chosen_TK.sigmoid()

    def probabilities(self, logits_TE: Tensor) -> Tensor:
        """[T, E] p of step 1."""
        return logits_TE.sigmoid()
