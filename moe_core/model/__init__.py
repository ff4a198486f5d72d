"""The MoE Transformer: attention, router, experts, losses, key/value cache.

Names are imported when they are first asked for: `moe_core.model.size` answers without torch, which takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moe_core.model.kv_cache import KVCache
    from moe_core.model.losses import load_balancing_loss, router_z_loss
    from moe_core.model.routers import RouterOutput, TopKRouter
    from moe_core.model.transformer import ModelOutput, MoETransformer

_MODULE_OF = {
    "KVCache": "kv_cache",
    "MoETransformer": "transformer",
    "ModelOutput": "transformer",
    "RouterOutput": "routers",
    "TopKRouter": "routers",
    "load_balancing_loss": "losses",
    "router_z_loss": "losses",
}

__all__ = [
    "KVCache",
    "MoETransformer",
    "ModelOutput",
    "RouterOutput",
    "TopKRouter",
    "load_balancing_loss",
    "router_z_loss",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
