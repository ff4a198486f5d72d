"""Where the routers of a model are: modules that obey our contract, else those of the transformers library.

This module imports neither transformers nor peft: whoever has such a model has imported them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from moe_core.errors import TraceError
from moe_core.routing.instruments.contract import Router, layer_of
from moe_core.routing.instruments.huggingface.routers import transformers_routers
from moe_core.routing.instruments.wrappers import modules_without_wrappers

if TYPE_CHECKING:
    import torch


def find_routers(model: torch.nn.Module) -> dict[int, Router]:
    """The routers of a model, by layer number, ascending. Raises TraceError if there is none, or none to be relied on.

    Any part of a model will do: of one that reads two texts, such as an encoder and a decoder, give the part.
    """
    places = modules_without_wrappers(model)
    modules = {name: place.module for name, place in places.items()}
    # The class is asked: a module without the attribute would look for it long, and captures are opened often.
    marked = [name for name, part in modules.items() if getattr(type(part), "is_moe_router", False) is True]
    found = [_contract_router(modules, name) for name in marked]
    if not found:
        found = transformers_routers(type(model).__name__, modules)
    routers: dict[int, Router] = {}
    for router in (replace(router, name=places[router.name].name) for router in found):
        if router.layer in routers:
            raise TraceError(
                f"layer {router.layer} has two routers, {routers[router.layer].name!r} and {router.name!r}; "
                "expected one per layer"
            )
        routers[router.layer] = router
    if not routers:
        raise TraceError(
            f"{type(model).__name__} has no router; expected an MoE model of the transformers library, or modules with "
            "is_moe_router = True"
        )
    return dict(sorted(routers.items()))


def _contract_router(modules: dict[str, torch.nn.Module], name: str) -> Router:
    module = modules[name]
    block = name.rpartition(".")[0]
    experts = modules.get(f"{block}.experts" if block else "experts")
    return Router(
        layer=layer_of(name)[1],
        name=name,
        module=module,
        num_experts=getattr(module, "num_experts", None),
        top_k=getattr(module, "top_k", None),
        score_function=str(getattr(module, "score_function", "softmax")),
        varying_experts=getattr(module, "varying_experts", False) is True,
        null_experts=null if isinstance(null := getattr(module, "null_experts", 0), int) else 0,
        experts=experts if getattr(experts, "is_moe_experts", False) is True else None,
    )
