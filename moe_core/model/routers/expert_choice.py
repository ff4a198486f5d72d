"""Expert choice: experts choose their tokens. For ablation only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from moe_core.config.router import ROUTER_FACTS
from moe_core.model.routers.base import Router, fill_slots, read_slots


class ExpertChoiceRouter(Router):
    """1. p = softmax(W x)  2. expert i takes the ceil(T * mean_experts / E) tokens of largest p_i  3. w = p_i.

    Zhou et al., arXiv:2202.09368, eq. 1-2. A token that more than K experts take keeps the K likeliest; others none.
    NOTE: all T tokens of a batch compete, so whether a token gets an expert depends on later tokens, and on other
    sequences: losses are flattered (arXiv:2601.15370), and nothing can be generated.
    """

    facts = ROUTER_FACTS["expert_choice"]

    def choose(self, logits_TE: Tensor, top_k: int, forced: Sequence[int] = ()) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """See Router.choose. The first of several tokens with equal p are taken."""
        p_TE = logits_TE.softmax(dim=-1)
        T = len(p_TE)
        room = min(T, math.ceil(T * self.config.mean_experts / self.num_experts))
        order_TE = p_TE.detach().sort(dim=0, descending=True, stable=True).indices
        taken_TE = torch.zeros_like(p_TE, dtype=torch.bool).scatter_(0, order_TE[:room], True)
        indices_TK = fill_slots(taken_TE, logits_TE, top_k)
        return read_slots(p_TE, indices_TK), indices_TK
