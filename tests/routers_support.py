"""Small models with every kind of router, for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moe_core.config import ModelConfig
from moe_core.config.router import RouterConfig
from moe_core.model import KVCache, MoETransformer
from moe_core.model.routers import ROUTERS, Router, RouterContext, RouterOutput, RouterShape

EXPERTS, TOP_K, START = 6, 3, 0
VARIANTS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "softmax_undivided": {"normalize_scores": False},
    "softmax_bias": {"balancing": "bias"},
    "noisy": {"kind": "noisy"},
    "hash": {"kind": "hash"},
    "hash_learned": {"kind": "hash", "hash_weights": "learned"},
    "sigmoid": {"kind": "sigmoid"},
    "top_p": {"kind": "top_p", "top_p": 0.5},
    "expert_threshold": {"kind": "expert_threshold", "mean_experts": 1.5},
    "expert_choice": {"kind": "expert_choice", "mean_experts": 2.0},
    "document_pool": {"kind": "document_pool", "pool_size": 4},
}
CAUSAL = [name for name in VARIANTS if name != "expert_choice"]
WINDOWED = {
    "window": {"window": 3},
    "window_by_layer": {"window": 2, "pattern": ("local", "global"), "first_tokens": 3, "sinks": True},
}
"""Variants of attention under a softmax router."""
CHOOSING = [name for name in CAUSAL if not name.startswith("hash")]
BASE = {
    "vocab_size": 300, "dim": 16, "num_layers": 3, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "max_seq_len": 32,
    "num_experts": EXPERTS, "top_k": TOP_K, "expert_hidden_dim": 12, "dense_hidden_dim": 20,
}  # fmt: skip


def model_with(variant: str, **changes: Any) -> MoETransformer:
    """In evaluation mode; weights large enough for routing to differ between tokens, biases and thresholds moved."""
    torch.manual_seed(0)
    changes = {"router": VARIANTS.get(variant, {}), "attention": WINDOWED.get(variant, {}), **changes}
    model = MoETransformer(ModelConfig.model_validate({**BASE, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    model.prepare_routers(torch.arange(300) % 17, START)
    with torch.no_grad():
        for _ in range(3):
            # Other text than the tests read: a threshold is the logit of one token, which would be a tie.
            model.after_step(model(tokens(4, 24, seed=2)).router_outputs)
    return model.eval()


def tokens(batch: int = 3, length: int = 16, seed: int = 1) -> Tensor:
    """Token ids, among them some that begin a document."""
    ids = torch.randint(1, 300, (batch, length), generator=torch.Generator().manual_seed(seed))
    ids[0, 5] = ids[-1, 9] = START
    return ids


def lone_router(variant: str, num_experts: int = EXPERTS, top_k: int = TOP_K, **changes: Any) -> Router:
    """In evaluation mode; its tokens are the logits. A hash table of 300 entries, a document start of 0."""
    config = RouterConfig.model_validate({**VARIANTS[variant], **changes})
    router = ROUTERS[config.kind](RouterShape(num_experts, num_experts, top_k, vocab_size=300), config)
    for parameter in router.parameters():
        torch.nn.init.eye_(parameter)
    router.prepare(torch.zeros(300), START)
    return router.eval()


def route(router: Router, logits_TE: Tensor, token_ids: Tensor | None = None) -> RouterOutput:
    """Of one text; its tokens are 1, 2, 3, ... unless said otherwise."""
    ids = torch.arange(1, 1 + len(logits_TE)) if token_ids is None else token_ids
    out: RouterOutput = router(logits_TE, RouterContext(ids.view(1, -1), None))
    return out


def cached(model: MoETransformer, token_ids: Tensor, chunks: list[int]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Logits [B, S, V], and scores and indices [B, S, K] of each layer, read in chunks through a cache."""
    B, S = token_ids.shape
    cache = KVCache(model.config, B, S)
    outputs = [model(part, cache=cache) for part in token_ids.split(chunks, dim=1)]
    layers = range(len(outputs[0].router_outputs))
    return (
        torch.cat([out.logits for out in outputs], dim=1),
        [torch.cat([out.router_outputs[i].router_scores.view(B, -1, TOP_K) for out in outputs], 1) for i in layers],
        [torch.cat([out.router_outputs[i].router_indices.view(B, -1, TOP_K) for out in outputs], 1) for i in layers],
    )
