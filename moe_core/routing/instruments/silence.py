"""Notice that a forward pass went by the routers that an intervention was to change.

No hook on a router tells that the router was never called. Hooks on the modules around it do: while one of these
runs, the routers within must be called. A compiled module runs no hooks of its parts, but still those of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from moe_core.errors import TraceError
from moe_core.routing.instruments.contract import Router, never_compiled

if TYPE_CHECKING:
    from torch import nn


class SilenceWatch:
    """Counts the calls of routers, and raises TraceError at the end of a forward pass around one that had none."""

    def __init__(self, model: nn.Module, routers: Mapping[int, Router], applies: Callable[[], bool]) -> None:
        """`applies`: whether what happens now is to be watched, such as a call by another thread is not."""
        self._routers = routers
        self._applies = applies
        self._calls = dict.fromkeys(routers, 0)
        self._around = {name: model.get_submodule(name) for name in _enclosing_names(routers.values())}

    def note_call(self, layer: int) -> None:
        """The router of this layer was called."""
        self._calls[layer] += 1

    def attach(self) -> Iterator[Any]:
        """Handles that take the hooks off again."""
        for name, module in self._around.items():
            entered: list[dict[int, int]] = []
            yield module.register_forward_pre_hook(never_compiled(self._before(entered)))
            yield module.register_forward_hook(never_compiled(self._after(name, entered)))

    def _before(self, entered: list[dict[int, int]]) -> Callable[..., None]:
        def hook(module: nn.Module, args: object) -> None:  # noqa: ARG001 - torch's signature
            if self._applies():
                entered.append(dict(self._calls))

        return hook

    def _after(self, name: str, entered: list[dict[int, int]]) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: object) -> None:  # noqa: ARG001 - torch's signature
            if not self._applies() or not entered:
                return
            before = entered.pop()
            silent = [
                router.described
                for layer, router in self._routers.items()
                if _encloses(name, router.name) and self._calls[layer] == before[layer]
            ]
            if silent:
                raise TraceError(
                    f"{silent[0]} stayed silent in a forward pass that was to change it, so the intervention did "
                    "nothing there: the model or this part is compiled, the layer was skipped, or another module took "
                    "the router's place; run the model uncompiled (torch.compiler.set_stance('force_eager')), with the "
                    "routers that it had when the block began"
                )

        return hook


def _enclosing_names(routers: Iterable[Router]) -> list[str]:
    """Names of all modules around the routers; the model's own is empty. No router, no module."""
    names: dict[str, None] = {}
    for router in routers:
        parts = router.name.split(".")
        names.update({".".join(parts[:count]): None for count in range(len(parts))})
    return list(names)


def _encloses(outer: str, inner: str) -> bool:
    return not outer or inner.startswith(f"{outer}.")
