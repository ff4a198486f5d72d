"""The MoE Transformer: attention, router, experts, losses, key/value cache."""

from moe_core.model.kv_cache import KVCache
from moe_core.model.losses import load_balancing_loss, router_z_loss
from moe_core.model.routers import RouterOutput, TopKRouter
from moe_core.model.transformer import ModelOutput, MoETransformer

__all__ = [
    "KVCache",
    "MoETransformer",
    "ModelOutput",
    "RouterOutput",
    "TopKRouter",
    "load_balancing_loss",
    "router_z_loss",
]
