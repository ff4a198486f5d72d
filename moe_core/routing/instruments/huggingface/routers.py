"""Finds the routers of a model of the transformers library, by what the library says about its own models.

1. Every PreTrainedModel inside the model names, in `_can_record_outputs["router_logits"]`, the class of its routers.
2. Beside them there may be more, which it does not record (hash routers): an experts module, that is one whose forward
   takes top_k_index and top_k_weights, without a router found so far has one beside it, called gate or router.
3. What differs from the rest, by class: families.py.

A model that reads two texts (encoder and decoder, thinker and talker) has one trace for each: TraceError says which
part to give.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

from moe_core.errors import TraceError
from moe_core.routing.instruments.contract import Router, layer_of
from moe_core.routing.instruments.huggingface.families import (
    ARGUMENTS,
    FORMS,
    NOT_CAPTURED,
    NOT_ROUTERS,
    SILENT,
    WATCHED,
    ArgumentForm,
    TripleForm,
    score_function_of,
)

if TYPE_CHECKING:
    import torch

_BESIDE_EXPERTS = ("gate", "router")
_NUM_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")
_TOP_K = ("top_k", "num_experts_per_tok", "top_k_experts", "moe_topk", "moe_top_k", "moe_k")


def transformers_routers(model: str, modules: dict[str, torch.nn.Module]) -> list[Router]:
    """The routers among the modules of a transformers model, or of a part of one; empty if it has none.

    `model` is its name in messages.
    Raises TraceError where they read different texts, or belong to a family that cannot be captured exactly.
    """
    names = [watched for name in _recorded_names(modules) if (watched := _watched_name(modules, name))]
    towers = {layer_of(name)[0] for name in names}
    served = {_block_of(name) for name in names}
    for name, module in modules.items():
        block = _block_of(name)
        if not _takes_choice(module) or block in served or (towers and layer_of(name)[0] not in towers):
            continue
        served.add(block)
        beside = [f"{block}.{child}" for child in _BESIDE_EXPERTS if f"{block}.{child}" in modules]
        names.append(beside[0] if beside else name)
    silent = {other for name in names if (other := _silent_twin(modules, name))}
    routers = [_router_at(modules, name) for name in names if name not in silent]
    _refuse_unfit(model, routers)
    return routers


def _recorded_names(modules: dict[str, torch.nn.Module]) -> list[str]:
    """Names of the modules that the library's own models record router logits of."""
    classes: set[type] = set()
    for module in modules.values():
        specs = (getattr(type(module), "_can_record_outputs", None) or {}).get("router_logits", [])
        for spec in specs if isinstance(specs, list) else [specs]:
            target = getattr(spec, "target_class", spec)
            if isinstance(target, type):
                classes.add(target)
    return [name for name, module in modules.items() if isinstance(module, tuple(classes))]


def _watched_name(modules: dict[str, torch.nn.Module], name: str) -> str | None:
    """The module to watch for a recorded one; None if it does not choose experts for tokens."""
    kind = type(modules[name]).__name__
    if kind in NOT_ROUTERS or type(modules.get(_block_of(name))).__name__ in NOT_ROUTERS:
        return None
    return WATCHED.get(kind, "{name}").format(name=name, block=_block_of(name))


def _silent_twin(modules: dict[str, torch.nn.Module], name: str) -> str | None:
    other = SILENT.get(type(modules[name]).__name__, "").format(tower=_block_of(_block_of(name)))
    return other if other in modules and other != name else None


def _takes_choice(module: torch.nn.Module) -> bool:
    kind: Any = type(module)
    return _class_takes_choice(kind)


@functools.cache
def _class_takes_choice(kind: Any) -> bool:
    """By class, since a capture is opened for every token that is written."""
    names = set(inspect.signature(kind.forward).parameters)
    return any(names.issuperset(pair) for pair in ARGUMENTS)


def _refuse_unfit(model: str, routers: list[Router]) -> None:
    towers: dict[str, None] = {}
    for router in routers:
        if reason := NOT_CAPTURED.get(type(router.module).__name__):
            raise TraceError(f"{model} cannot be captured exactly: {reason}")
        towers.setdefault(layer_of(router.name)[0].rpartition(".")[0])
    if len(towers) > 1:
        parts = " or ".join(f"capture(model.get_submodule({tower!r}))" for tower in towers)
        raise TraceError(f"{model} has routers in {len(towers)} parts that read different tokens; capture one: {parts}")


def _router_at(modules: dict[str, torch.nn.Module], name: str) -> Router:
    module, block = modules[name], modules[_block_of(name)]
    form = FORMS.get(type(module).__name__, ArgumentForm if _takes_choice(module) else TripleForm)()
    config = _config_of(modules, name)
    experts = modules.get(f"{_block_of(name)}.experts")
    separate = experts is not None and experts is not module and _takes_choice(experts)
    silent = _silent_twin(modules, name)
    num_experts, top_k = form.sizes(module)
    return Router(
        layer=layer_of(name)[1],
        name=name,
        module=module,
        num_experts=num_experts or _first_number(_NUM_EXPERTS, module, experts, block, config),
        top_k=top_k or _first_number(_TOP_K, module, block, getattr(module, "config", None), config),
        score_function=score_function_of(module, config),
        experts=experts if separate else None,
        block=block,
        silent=(modules[silent],) if silent else (),
        family=str(getattr(config, "model_type", type(module).__name__)),
        form=form,
    )


def _block_of(name: str) -> str:
    return name.rpartition(".")[0]


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
