"""The model without memory: names and shapes, to compare with files before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from moe_core.config import ModelConfig
from moe_core.model.transformer import MoETransformer

_DRAWS = (Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)


class _NothingDrawn(TorchFunctionMode):
    """Random first values are left out. Where there is no memory they are lost, and torch loads its compiler for them,
    which takes a second or more."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given: Mapping[str, Any] = kwargs or {}
        if func in _DRAWS:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


def outline(config: ModelConfig) -> MoETransformer:
    """The model of `config` on the meta device: its tensors have names, shapes and dtypes, and no values."""
    with torch.device("meta"), _NothingDrawn():
        return MoETransformer(config)
