"""Hash routing: the vocabulary is dealt out to the experts once, before training."""

from __future__ import annotations

import heapq

import torch
from torch import Tensor

from moe_core.config.router import ROUTER_FACTS, RouterConfig
from moe_core.model.routers.base import Router, RouterContext, RouterOutput, RouterShape

NEVER = -1e4
"""Logit of an expert that the table does not give: its softmax is 0."""


class HashRouter(Router):
    """1. T = table[token id]  2. w = 1 / K each; with learned weights softmax(W x) over the chosen,
    or over all experts if K = 1.

    Roller et al., arXiv:2106.04426, sec. 3 (balanced assignment, a frozen table; there K = 1). The hash layers of
    DeepSeek-V4 have learned weights, with another score function. The table [V, K], the same in every layer, is a
    buffer of the checkpoint. With equal weights nothing is learned, and logits are 0 or -1e4, whose softmax is w.
    """

    facts = ROUTER_FACTS["hash"]
    table: Tensor

    def __init__(self, shape: RouterShape, config: RouterConfig | None = None) -> None:
        super().__init__(shape, config)
        if self.config.hash_weights == "equal":
            self.weight = None
        # Until it is dealt out by frequency, each expert has every E-th entry.
        entries = torch.arange(shape.vocab_size * shape.top_k) % shape.num_experts
        self.register_buffer("table", entries.view(shape.vocab_size, shape.top_k))

    def route(self, x_TD: Tensor, context: RouterContext | None) -> RouterOutput:
        """See Router.route."""
        assert context is not None
        indices_TK = self.table[context.token_ids.flatten()]
        if self.weight is None:
            logits_TE = torch.full((len(x_TD), self.num_experts), NEVER, device=x_TD.device)
            logits_TE.scatter_(-1, indices_TK, 0.0)
            return RouterOutput(
                logits_TE, torch.full_like(indices_TK, 1.0 / self.top_k, dtype=torch.float32), indices_TK
            )
        logits_TE = self.logits(x_TD)
        if self.top_k == 1:  # as TopKRouter: divided by itself a single weight would learn nothing
            return RouterOutput(logits_TE, logits_TE.softmax(dim=-1).gather(-1, indices_TK), indices_TK)
        scores_TK, order_TK = (
            logits_TE.gather(-1, indices_TK).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
        )
        return RouterOutput(logits_TE, scores_TK, indices_TK.gather(-1, order_TK))

    def prepare(self, token_counts_V: Tensor, document_start: int) -> None:  # noqa: ARG002
        """Deal the vocabulary out by its frequency in the training text."""
        self.table.copy_(balanced_table(token_counts_V, self.num_experts, self.top_k))


def balanced_table(token_counts_V: Tensor, num_experts: int, top_k: int) -> Tensor:
    """int64 [V, top_k]: tokens by falling frequency, each to the experts with the least load so far.

    A token counts as often as it occurs, and once more, so that those never seen are spread, too. Ties: the smaller
    token id is served first, the smaller expert takes it.
    """
    counts = (token_counts_V.double() + 1).tolist()
    loads = [(0.0, expert) for expert in range(num_experts)]
    table: list[list[int]] = [[]] * len(counts)
    for token in sorted(range(len(counts)), key=lambda token: -counts[token]):
        least = [heapq.heappop(loads) for _ in range(top_k)]
        table[token] = [expert for _, expert in least]
        for load, expert in least:
            heapq.heappush(loads, (load + counts[token], expert))
    return torch.tensor(table)
