"""Finds the routers of a model of the transformers library, by what the library says about its own models.

1. Every PreTrainedModel inside the model names, in `_can_record_outputs["router_logits"]`, the class of its routers.
2. Beside them there may be more, which it does not record (hash routers): an experts module, that is one whose forward
   takes top_k_index and top_k_weights, without a router found so far has one beside it, called gate or router.
3. What differs from the rest, by class: huggingface_families.py.

A model that reads two texts (encoder and decoder, thinker and talker) has one trace for each: TraceError says which
part to give.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from moe_core.errors import TraceError
from moe_core.routing.huggingface_families import (
    ARGUMENTS,
    FORMS,
    NOT_CAPTURED,
    NOT_ROUTERS,
    ArgumentForm,
    TripleForm,
    score_function_of,
)
from moe_core.routing.routers import Form, Router, layer_of

if TYPE_CHECKING:
    import torch

_BESIDE_EXPERTS = ("gate", "router")
_NUM_EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
_TOP_K = ("top_k", "num_experts_per_tok", "top_k_experts", "moe_topk", "moe_top_k", "moe_k")


def transformers_routers(model: torch.nn.Module) -> list[Router]:
    """The routers of a transformers model, or of a part of one; empty if it has none.

    Raises TraceError where they read different texts, or belong to a family that cannot be captured exactly.
    """
    modules = dict(model.named_modules())
    named = {name: module for name, module in _recorded(modules) if type(module).__name__ not in NOT_ROUTERS}
    towers = {layer_of(name)[0] for name in named}
    served = {name.rpartition(".")[0] for name in named}
    for name, module in modules.items():
        block = name.rpartition(".")[0]
        if not _takes_choice(module) or block in served or (towers and layer_of(name)[0] not in towers):
            continue
        served.add(block)
        beside = [f"{block}.{child}" for child in _BESIDE_EXPERTS if f"{block}.{child}" in modules]
        named[beside[0] if beside else name] = modules[beside[0] if beside else name]
    _refuse(type(model).__name__, named)
    return [_router(modules, name) for name in named]


def _recorded(modules: dict[str, torch.nn.Module]) -> Iterator[tuple[str, torch.nn.Module]]:
    """Name and module of everything that the library's own models record router logits of."""
    classes: set[type] = set()
    for module in modules.values():
        specs = (getattr(type(module), "_can_record_outputs", None) or {}).get("router_logits", [])
        for spec in specs if isinstance(specs, list) else [specs]:
            target = getattr(spec, "target_class", spec)
            if isinstance(target, type):
                classes.add(target)
    yield from ((name, module) for name, module in modules.items() if isinstance(module, tuple(classes)))


def _takes_choice(module: torch.nn.Module) -> bool:
    names = set(inspect.signature(type(module).forward).parameters)
    return any(names.issuperset(pair) for pair in ARGUMENTS)


def _refuse(model: str, named: dict[str, torch.nn.Module]) -> None:
    for module in named.values():
        if reason := NOT_CAPTURED.get(type(module).__name__):
            raise TraceError(f"{model} cannot be captured exactly: {reason}")
    towers: dict[str, str] = {}
    for name in named:
        towers.setdefault(layer_of(name)[0].rpartition(".")[0], name)
    if len(towers) > 1:
        parts = " or ".join(f"capture(model.get_submodule({tower!r}))" for tower in towers)
        raise TraceError(f"{model} has routers in {len(towers)} parts that read different tokens; capture one: {parts}")


def _router(modules: dict[str, torch.nn.Module], name: str) -> Router:
    module = modules[name]
    form: Form = FORMS.get(type(module).__name__, ArgumentForm if _takes_choice(module) else TripleForm)()
    block = modules[name.rpartition(".")[0]]
    config = _config_of(modules, name)
    family = str(getattr(config, "model_type", type(module).__name__))
    experts = getattr(block, "experts", None)
    return Router(
        layer=layer_of(name)[1],
        name=name,
        module=module,
        num_experts=_first_number(_NUM_EXPERTS, module, experts, block, config),
        top_k=_first_number(_TOP_K, module, block, getattr(module, "config", None), config),
        score_function=score_function_of(module, config),
        experts=experts if experts is not None and _takes_choice(experts) else None,
        family=family,
        form=form,
    )


def _config_of(modules: dict[str, torch.nn.Module], name: str) -> Any:
    """Configuration of the innermost PreTrainedModel around a module: of a text tower its own, not the whole's."""
    while name:
        name = name.rpartition(".")[0]
        if hasattr(type(modules[name]), "_can_record_outputs"):
            return getattr(modules[name], "config", None)
    return None


def _first_number(names: tuple[str, ...], *places: Any) -> int | None:
    for place in places:
        for name in names:
            value = getattr(place, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None
