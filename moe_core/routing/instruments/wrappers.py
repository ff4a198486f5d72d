"""A model's modules under the names that they would have if no library had put a wrapper around some of them.

Adapters (peft), the compiler, and libraries that shard or recompute replace a module by a wrapper that holds it and
calls it. The router is then what is inside: its own code runs, with the adapter's part in its weights, and its output
is what its experts get. None of these libraries is imported here; the wrappers are known by the name of what they hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import nn

_HELD = ("base_layer", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
"""By what name peft's adapters (LoRA and others), torch.compile, checkpoint_wrapper and FSDP hold a module."""
_ORIGINAL, _COPIES = "original_module", "modules_to_save"
"""peft trains a whole copy of a module for each adapter; the active adapter's is called, without one the original."""


class FoundModule(NamedTuple):
    """A module and where it really is."""

    module: nn.Module
    name: str
    """As model.get_submodule takes it, wrappers included."""


def modules_without_wrappers(model: nn.Module) -> dict[str, FoundModule]:
    """By their names without wrappers, in the order of model.named_modules(); each module once. What a wrapper holds
    beside the module that is called, such as an adapter's weights, is left out."""
    found: dict[str, FoundModule] = {}
    _collect(found, set(), "", "", model)
    return found


def _collect(found: dict[str, FoundModule], seen: set[int], plain: str, name: str, module: nn.Module) -> None:
    while (part := _held_part(module)) is not None:
        name = f"{name}.{part}" if name else part
        for step in part.split("."):
            module = module.get_submodule(step)
    if id(module) in seen:
        return
    seen.add(id(module))
    found[plain] = FoundModule(module, name)
    for child, held in module.named_children():
        _collect(found, seen, f"{plain}.{child}" if plain else child, f"{name}.{child}" if name else child, held)


def _held_part(module: nn.Module) -> str | None:
    """The path from a wrapper to the module that it calls; None if it is no wrapper."""
    parts = module._modules
    for held in _HELD:
        if parts.get(held) is not None and not getattr(type(module), "is_moe_router", False):
            return held
    if parts.get(_ORIGINAL) is None or parts.get(_COPIES) is None:
        return None
    copies = module.get_submodule(_COPIES)._modules
    active = list(getattr(module, "active_adapters", ()))
    if getattr(module, "disable_adapters", False) or not active or any(adapter not in copies for adapter in active):
        return _ORIGINAL
    return f"{_COPIES}.{active[0]}"
