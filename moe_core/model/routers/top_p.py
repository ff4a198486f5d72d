"""Top-p routing: as many experts as the router is unsure about."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_core.config.router import ROUTER_FACTS
from moe_core.model.routers.base import Router, by_logit, read_slots


class TopPRouter(Router):
    """1. p = softmax(W x)  2. T = the fewest experts, likeliest first, with sum p_T >= top_p, K at most
    3. w = p_T, divided by its sum if asked and K > 1.

    Huang et al., arXiv:2403.07652, eq. 3-5, who divide and bound nothing. A token with one expert then weighs it by 1
    and sends the router no gradient; the others and the losses do. Unused slots are -1.
    """

    facts = ROUTER_FACTS["top_p"]

    def choose(self, logits_TE: Tensor, top_k: int, forced: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """See Router.choose; the number of forced experts counts towards top_p."""
        p_TE = logits_TE.softmax(dim=-1)
        indices_TK = by_logit(logits_TE)[:, :top_k]
        p_TK = p_TE.gather(-1, indices_TK)
        decided_TK = p_TK.detach()
        unused_TK = decided_TK.cumsum(dim=-1) - decided_TK >= self.config.top_p
        unused_TK[:, 0].zero_()
        if forced:
            forced_F = torch.tensor(forced, device=logits_TE.device)
            unused_TK &= ~torch.isin(indices_TK, forced_F)
        indices_TK = indices_TK.masked_fill(unused_TK | logits_TE.gather(-1, indices_TK).isneginf(), -1)
        if self.normalize_scores and self.top_k > 1:
            chosen_TK = logits_TE.gather(-1, indices_TK.clamp(min=0)).masked_fill(indices_TK < 0, -torch.inf)
            return chosen_TK.softmax(dim=-1), indices_TK
        return read_slots(p_TE, indices_TK), indices_TK
