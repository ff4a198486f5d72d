"""Document pool: tokens choose among the experts that their document has used most so far."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from moe_core.config.router import ROUTER_FACTS, RouterConfig
from moe_core.model.routers.base import RouterContext, RouterOutput, RouterShape
from moe_core.model.routers.top_k import TopKRouter


class DocumentPoolRouter(TopKRouter):
    """1. p_t = softmax(W x_t)  2. the pool of token t: the M experts of largest mean p over its document up to t
    3. as TopKRouter, among the pool.

    EMO (arXiv:2605.06663) averages over the whole document, which a model that writes cannot know; the running average
    is its causal form. M = pool_size. A document begins with each sequence and at every end-of-text token; the id is a
    buffer of the checkpoint, -1 as long as nobody told it. Probabilities that are not divided by their sum are those of
    the softmax over the pool.

    What a decoder has to remember is the sum of p over the document so far: the cache keeps it for every token, [E], so
    that a cache cut back to fewer tokens stays right.
    """

    facts = ROUTER_FACTS["document_pool"]
    document_start: Tensor

    def __init__(self, shape: RouterShape, config: RouterConfig | None = None) -> None:
        super().__init__(shape, config)
        half = max(shape.top_k, shape.num_experts // 2)
        self.pool_size = half if self.config.pool_size is None else self.config.pool_size
        self.register_buffer("document_start", torch.full((1,), -1))

    def decide(self, logits_TE: Tensor, context: RouterContext | None) -> RouterOutput:
        """See Router.decide."""
        assert context is not None
        sums_BSE = self._running_sums(logits_TE.detach().double().softmax(dim=-1), context)
        pool_TM = sums_BSE.flatten(0, 1).sort(dim=-1, descending=True, stable=True).indices[:, : self.pool_size]
        pool_TE = torch.zeros_like(logits_TE, dtype=torch.bool).scatter_(-1, pool_TM, True)
        scores_TK, indices_TK = self.choose(logits_TE.masked_fill(~pool_TE, -math.inf), self.top_k)
        return RouterOutput(logits_TE, scores_TK, indices_TK).noting(eligible=pool_TE)

    def choose(self, logits_TE: Tensor, top_k: int, forced: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """See Router.choose; experts outside the pool have logit -inf, and a slot that only they could fill is -1."""
        scores_TK, indices_TK = super().choose(logits_TE, top_k, forced)
        outside_TK = logits_TE.gather(-1, indices_TK).isneginf()
        return scores_TK.masked_fill(outside_TK, 0.0), indices_TK.masked_fill(outside_TK, -1)

    @torch.no_grad()
    def prepare(self, token_counts_V: Tensor, document_start: int) -> None:  # noqa: ARG002
        """Remember the token that begins a document."""
        self.document_start.fill_(document_start)

    def _running_sums(self, p_TE: Tensor, context: RouterContext) -> Tensor:
        """float64 [B, S, E]: sum of p over the tokens of the document so far, the token included.

        float64 is needed: the difference of two long sums then has far more correct digits than p itself.
        """
        B, S = context.token_ids.shape
        running_BSE = p_TE.view(B, S, -1).cumsum(dim=1)
        begins_BS = context.token_ids == self.document_start
        place_S = torch.arange(S, device=begins_BS.device)
        first_BS = torch.where(begins_BS, place_S, -1).cummax(dim=1).values
        earlier_BSE = running_BSE - p_TE.view(B, S, -1)
        index_BSE = first_BS.clamp(min=0)[..., None].expand_as(running_BSE)
        sums_BSE = running_BSE - earlier_BSE.gather(1, index_BSE)
        if context.cache is None:
            return sums_BSE
        if (earlier_B1E := context.cache.last_notes(self)) is not None:
            goes_on_BS1 = (first_BS < 0)[..., None]
            sums_BSE = sums_BSE + goes_on_BS1 * earlier_B1E
        context.cache.note(self, sums_BSE)
        return sums_BSE
