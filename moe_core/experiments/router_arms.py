"""The routers and ways of balancing that are held against each other, all in the same model."""

from __future__ import annotations

from typing import Any

from moe_core.config import Config, validate_config
from moe_core.config.router import ROUTER_FACTS
from moe_core.errors import UsageError
from moe_core.experiments.arms import Arm

# The first one is what the others are held against. Labels name the router, then what keeps its load even.
ROUTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "softmax-layer": ("softmax (loss per layer)", {"kind": "softmax", "balancing": "layer"}),
    "softmax-global": ("softmax (loss over the batch)", {"kind": "softmax", "balancing": "global_batch"}),
    "softmax-bias": ("softmax (selection bias)", {"kind": "softmax", "balancing": "bias"}),
    "softmax-none": ("softmax (not balanced)", {"kind": "softmax", "balancing": "none"}),
    "softmax-no-z": (
        "softmax (per layer, no z-loss)",
        {"kind": "softmax", "balancing": "layer", "router_z_loss_coef": 0},
    ),
    "softmax-plain": (
        "softmax (not renormalised)",
        {"kind": "softmax", "balancing": "layer", "normalize_scores": False},
    ),
    "noisy": ("noisy (CV² losses)", {"kind": "noisy"}),
    "sigmoid": ("sigmoid (selection bias)", {"kind": "sigmoid"}),
    "hash": ("hash (by its table)", {"kind": "hash"}),
    "top-p": ("top-p (loss per layer)", {"kind": "top_p"}),
    "expert-threshold": ("expert threshold (by its rule)", {"kind": "expert_threshold"}),
    "document-pool": ("document pool (loss over the batch)", {"kind": "document_pool"}),
    "expert-choice": ("expert choice (sees the future)", {"kind": "expert_choice"}),
}


def router_arms(config: Config) -> list[Arm]:
    """The configuration with each router of ROUTERS and its own keys as they are.

    Where a rule gives some tokens more experts than others, a token may have twice as many as the rest's top_k. Their
    mean is asked to be that top_k; top-p cannot be asked, so its result says what its mean was.
    """
    model = config.model
    if not model.moe_layers or 2 * model.top_k > model.num_experts:
        raise UsageError(
            f"routers are compared in a model with MoE layers and at least twice as many experts as are chosen; it has "
            f"{len(model.moe_layers)} MoE layers, {model.num_experts} experts and model.top_k = {model.top_k}"
        )
    arms = []
    for name, (label, keys) in ROUTERS.items():
        router: dict[str, Any] = {**model.router.model_dump(), "balancing": None, **keys}
        tree = {**model.model_dump(), "router": router}
        if ROUTER_FACTS[keys["kind"]].varying_experts:
            router["mean_experts"], tree["top_k"] = float(model.top_k), 2 * model.top_k
        arms.append(Arm(name, label, validate_config({**config.model_dump(), "model": tree})))
    return arms
