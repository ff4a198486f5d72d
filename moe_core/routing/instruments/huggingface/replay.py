"""Let a router of the transformers library choose again: its own forward, run with other logits.

Families differ in what they do with logits: groups, biases for the choice alone, sigmoids, normalisation. None of this
is written down again here. A copy of the module that shares its weights runs the family's own code; the one operation
whose result is the logits that the router reported gives the new ones instead. What comes out is checked.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from moe_core.errors import TraceError, UsageError
from moe_core.routing.instruments.contract import Call, Choice, Router

_ADDITIONS = ("add", "add_", "__add__", "__radd__", "__iadd__")
_TOP_K = ("top_k", "top_k_experts", "num_experts_per_tok")
_FAR = 1e4
"""Beyond any score and any bias, finite so that sums over groups stay numbers."""


def chosen_again(
    router: Router,
    call: Call,
    reported: Tensor,
    replacement: Tensor,
    top_k: int,
    absent: Sequence[int],
    forced: Sequence[int],
    read: Callable[[Call], Choice],
) -> Choice:
    """What the router chooses if `replacement` stands where it computed `reported` (same shape); `top_k` a token.

    `absent` experts are not to be chosen while others are left, `forced` ones by all tokens; a bias that only moves the
    choice cannot overrule either. Raises UsageError if the router's own rule cannot do it.
    """
    module = _with_top_k(router, top_k)
    edit = _Edit(reported, replacement, absent, forced)
    try:
        with edit:
            output = type(module).forward(module, *call.args, **call.kwargs)
    except (ValueError, RuntimeError, IndexError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:120]
        raise UsageError(f"{router.described} cannot choose again with top_k = {top_k}: {reason}") from error
    if not edit.found:
        raise UsageError(f"{router.described} does not compute its logits in one step; use mode zero or renormalise")
    try:
        choice = read(Call(call.args, call.kwargs, output))
    except TraceError as error:
        raise UsageError(f"{router.described} does not choose {top_k} experts a token, although told to") from error
    _verify(router, choice, top_k, absent, forced)
    return choice


def _with_top_k(router: Router, top_k: int) -> nn.Module:
    """A shallow copy, so that other threads that use the model never see another top_k. No hooks run on it.

    copy.copy refuses a module whose weights are parametrised, as they are while a LoRA adapter acts on them.
    """
    module: nn.Module = object.__new__(type(router.module))
    module.__dict__.update(router.module.__dict__)
    if router.top_k == top_k:
        return module
    for name in _TOP_K:
        if isinstance(module.__dict__.get(name), int):
            setattr(module, name, top_k)
            return module
        config = module.__dict__.get("config")
        if isinstance(getattr(config, name, None), int):
            module.__dict__["config"] = config = copy.copy(config)
            setattr(config, name, top_k)
            return module
    raise UsageError(f"{router.described} has no number of experts that could be changed; leave top_k as it is")


class _Edit(TorchFunctionMode):
    """Replaces one result, recognised by its values, and then what a bias for the choice alone adds to it."""

    def __init__(self, reported: Tensor, replacement: Tensor, absent: Sequence[int], forced: Sequence[int]) -> None:
        super().__init__()
        self.found = False
        self._reported, self._replacement = reported, replacement
        self._absent, self._forced = list(absent), list(forced)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, Tensor) or result.numel() != self._reported.numel():
            return result
        if not self.found:
            if result.dtype != self._reported.dtype or not torch.equal(result.flatten(), self._reported.flatten()):
                return result
            self.found = True
            return self._replacement.view(result.shape)
        E = result.shape[-1]
        if getattr(func, "__name__", "") in _ADDITIONS and any(_is_bias(x, E) for x in args):
            result = result.index_fill(-1, torch.tensor(self._absent, device=result.device, dtype=torch.long), -_FAR)
            result = result.index_fill(-1, torch.tensor(self._forced, device=result.device, dtype=torch.long), _FAR)
        return result


def _is_bias(value: object, num_experts: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.numel() == num_experts == value.shape[-1]


def _verify(router: Router, choice: Choice, top_k: int, absent: Sequence[int], forced: Sequence[int]) -> None:
    """Raise UsageError unless the router did as it was told."""
    if choice.indices.shape[1] != top_k:
        raise UsageError(f"{router.described} chose {choice.indices.shape[1]} experts although told top_k = {top_k}")
    for expert in forced:
        without = int((choice.indices != expert).all(dim=1).sum())
        if without:
            raise UsageError(
                f"{router.described} keeps to its own rule and leaves expert {router.layer}:{expert} out for {without} "
                f"of {len(choice.indices)} tokens; it cannot be forced here"
            )
    left = (router.num_experts or 0) - len(set(absent))
    for expert in absent:
        if left >= top_k and bool((choice.indices == expert).any()):
            raise UsageError(
                f"{router.described} keeps to its own rule and still chooses expert {router.layer}:{expert}; "
                "use mode zero or renormalise"
            )
