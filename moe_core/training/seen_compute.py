"""Which operations a training step dispatches for attention and router: seen, not asked for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from moe_core.config import Config
from moe_core.model.outline import outline
from moe_core.model.rope import rope_angles
from moe_core.model.routers import RouterContext
from moe_core.model.transformer import Block
from moe_core.runs.compute import Compute
from moe_core.training.repeatability import autocast_dtype

ATTENTION, PRODUCT = "attention", "product"
_Seen = tuple[str, torch.dtype, str]
"""Name of the function, dtype of what it returned, and of attention the backend."""


class _Operations(TorchFunctionMode):
    """Attention and matrix products that are called inside.

    A TorchDispatchMode would name the kernel, and load torch's compiler for it; the profiler writes to stderr. So the
    dispatcher is asked for its choice, of the very arguments that the call has, in the dtype that it computed in.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[_Seen] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is nn.functional.scaled_dot_product_attention:
            query, key, value = (one.to(result.dtype) for one in args[:3])
            rest: dict[str, Any] = {name: one for name, one in (kwargs or {}).items() if name != "dropout_p"}
            choice = torch._fused_sdp_choice(query, key, value, **rest)
            self.seen.append((ATTENTION, result.dtype, backend_name(choice)))
        elif func is nn.functional.linear:
            self.seen.append((PRODUCT, result.dtype, ""))
        return result


def backend_name(choice: int) -> str:
    """Of one of torch's backends for attention, by number: "math", "flash", "efficient", "cudnn"."""
    names = torch._C._SDPBackend.__members__
    found = next((name for name, value in names.items() if value.value == choice), str(choice))
    return found.removesuffix("_ATTENTION").lower()


def seen_compute(config: Config, device: torch.device, *, autocast: bool, rows: int, weights: torch.dtype) -> Compute:
    """What a step of `rows` sequences dispatches on `device`, from attention and router of one layer built beside the
    model: nothing is drawn, and no weight of the model is touched. `autocast`: to autocast_dtype."""
    model = config.model
    layer = model.moe_layers[0] if model.moe_layers else 0
    block = outline(model).layers[layer]
    assert isinstance(block, Block)
    S = config.training.seq_len
    cos, sin = rope_angles(model, 0, S, device)
    x_BSD = torch.zeros(rows, S, model.dim, device=device, requires_grad=True)
    attention = _empty(block.attention, device)
    seen = _operations(lambda: attention(x_BSD, cos, sin, None), config, device, autocast)
    backend, dtype = next((backend, dtype) for name, dtype, backend in seen if name == ATTENTION)
    router_dtype = weights
    if block.moe is not None and block.moe.router.weight is not None:
        router = _empty(block.moe.router, device).eval()
        context = RouterContext(torch.zeros(rows, S, dtype=torch.int64, device=device), None)
        seen = _operations(lambda: router(x_BSD.flatten(0, 1), context), config, device, autocast)
        router_dtype = next(dtype for name, dtype, _ in seen if name == PRODUCT)
    return Compute(device.type, backend, *(_name(one) for one in (dtype, router_dtype, weights)))


def _empty(module: nn.Module, device: torch.device) -> Any:
    """The module with zeros on the device."""
    made = module.to_empty(device=device)
    for tensor in (*made.parameters(), *made.buffers()):
        tensor.data.zero_()
    return made


def _operations(call: Callable[[], object], config: Config, device: torch.device, autocast: bool) -> list[_Seen]:
    casting = torch.autocast(device.type, dtype=autocast_dtype(config)) if autocast else nullcontext()
    operations = _Operations()
    with casting, operations:
        call()
    return operations.seen


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
