"""Expert threshold routing: every expert takes the tokens above its own running threshold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_core.config.router import ROUTER_FACTS, RouterConfig
from moe_core.model.routers.base import Router, RouterOutput, RouterShape, fill_slots, read_slots


class ExpertThresholdRouter(Router):
    """1. logits = W x  2. expert i takes the token if logit_i > c_i, the K largest at most  3. w = sigmoid(logit).

    After a step c_i moves to the (1 - mean_experts / E) quantile of the step's logits, as an exponential moving average
    (Sun et al., arXiv:2603.11535, thresholds at the 1 / E quantile from the top; the average is ours to choose). A
    token looks at no other token, so the rule is causal, and no loss is needed. Tokens may have no expert at all.
    Weights are never divided by their sum: most tokens have one expert, which would then weigh 1, without a gradient.
    Until the first step thresholds are 0; the first steps weigh equally, so that the 0 is forgotten at once.
    """

    facts = ROUTER_FACTS["expert_threshold"]
    threshold: Tensor
    updates: Tensor

    def __init__(self, shape: RouterShape, config: RouterConfig | None = None) -> None:
        super().__init__(shape, config)
        self.register_buffer("threshold", torch.zeros(shape.num_experts, dtype=torch.float32))
        self.register_buffer("updates", torch.zeros(1, dtype=torch.float32))

    def choose(self, logits_TE: Tensor, top_k: int, forced: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """See Router.choose."""
        wanted_TE = logits_TE.detach() > self.threshold.float()
        if forced:
            wanted_TE[:, list(forced)] = True
        indices_TK = fill_slots(wanted_TE, logits_TE, top_k)
        return read_slots(logits_TE.sigmoid(), indices_TK), indices_TK

    @torch.no_grad()
    def after_step(self, routed: RouterOutput) -> None:
        """Move the thresholds to this step's quantiles."""
        logits_TE = self.all_tokens.concatenate(routed.router_logits)
        T = len(logits_TE)
        above = min(T - 1, round(T * self.config.mean_experts / self.num_experts))
        quantile_E = logits_TE.kthvalue(T - above, dim=0).values
        self.updates += 1
        share = torch.maximum(1.0 / self.updates, torch.full_like(self.updates, 1.0 - self.config.threshold_decay))
        self.threshold.lerp_(quantile_E.to(self.threshold.dtype), share)
