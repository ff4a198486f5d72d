"""The function that gates a feed-forward block: silu (SwiGLU) or gelu (GeGLU), both of arXiv:2002.05202."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moe_core.config.tree import ActivationName

_aten = torch.ops.aten


class Activation(NamedTuple):
    """One function, in the forms that experts need it in. Each result has the shape of x."""

    name: ActivationName
    value: Callable[[Tensor], Tensor]
    value_: Callable[[Tensor], Tensor]
    """In the memory of x."""
    value_out: Callable[..., Tensor]
    """(x, out=)"""
    gradient: Callable[[Tensor, Tensor], Tensor]
    """(gradient of the value, x) -> gradient of x"""
    gradient_out: Callable[..., Tensor]
    """(gradient of the value, x, grad_input=)"""

    def __reduce__(self) -> tuple[Callable[[ActivationName], Activation], tuple[ActivationName]]:
        """A model that is saved whole holds its name: torch's functions cannot be pickled."""
        return _activation_of, (self.name,)


def _activation_of(name: ActivationName) -> Activation:
    return ACTIVATIONS[name]


ACTIVATIONS: dict[ActivationName, Activation] = {
    "silu": Activation(
        "silu",
        nn.functional.silu,
        partial(nn.functional.silu, inplace=True),
        _aten.silu.out,
        _aten.silu_backward,
        _aten.silu_backward.grad_input,
    ),
    # x times the normal distribution's share below x (arXiv:1606.08415), not its approximation by tanh.
    "gelu": Activation(
        "gelu", nn.functional.gelu, _aten.gelu_, _aten.gelu.out, _aten.gelu_backward, _aten.gelu_backward.grad_input
    ),
}
SILU = ACTIVATIONS["silu"]
