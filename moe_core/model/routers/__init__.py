"""The routers: which experts a token visits and how much each counts. One class each, chosen by `model.router.kind`."""

from __future__ import annotations

from moe_core.config import ModelConfig
from moe_core.config.router import RouterKind
from moe_core.model.routers.base import Router, RouterContext, RouterOutput, RouterShape, tokens_per_expert
from moe_core.model.routers.document_pool import DocumentPoolRouter
from moe_core.model.routers.expert_choice import ExpertChoiceRouter
from moe_core.model.routers.expert_threshold import ExpertThresholdRouter
from moe_core.model.routers.hashing import HashRouter
from moe_core.model.routers.noisy import NoisyRouter
from moe_core.model.routers.top_k import SigmoidRouter, TopKRouter
from moe_core.model.routers.top_p import TopPRouter

ROUTERS: dict[RouterKind, type[Router]] = {
    "softmax": TopKRouter,
    "noisy": NoisyRouter,
    "hash": HashRouter,
    "sigmoid": SigmoidRouter,
    "top_p": TopPRouter,
    "expert_threshold": ExpertThresholdRouter,
    "expert_choice": ExpertChoiceRouter,
    "document_pool": DocumentPoolRouter,
}


def build_router(config: ModelConfig) -> Router:
    """The router of one MoE layer; its weights are not set yet."""
    shape = RouterShape(
        config.dim,
        config.router_choices,
        config.top_k,
        config.capacity_factor,
        config.vocab_size,
        loses_experts=config.removed_experts > 0,
    )
    return ROUTERS[config.router.kind](shape, config.router)


__all__ = [
    "ROUTERS",
    "DocumentPoolRouter",
    "ExpertChoiceRouter",
    "ExpertThresholdRouter",
    "HashRouter",
    "NoisyRouter",
    "Router",
    "RouterContext",
    "RouterOutput",
    "RouterShape",
    "SigmoidRouter",
    "TopKRouter",
    "TopPRouter",
    "build_router",
    "tokens_per_expert",
]
