"""Rotary position embedding (RoFormer, arXiv:2104.09864, eq. 34), half-split as Hugging Face and Llama store it.

Nothing is stored in the model. The angles of a forward pass are computed once and shared by all layers; a cache keeps
the angles of a text that is being written. So they stay exact when the weights are bfloat16, and no buffer has to be
restored after a meta-device build.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rope_angles(start: int, length: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of position * theta^(-2i / head_dim), each float32 [length, 1, head_dim / 2].

    Positions run from `start` to `start + length - 1`; the middle axis spreads over the heads.
    """
    exponents = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    positions = torch.arange(start, start + length, device=device, dtype=torch.float32)
    angles = torch.outer(positions, 1.0 / (theta**exponents))[:, None]
    return angles.cos(), angles.sin()


def apply_rope(x_BSHd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + head_dim / 2) of every head of [B, S, H, head_dim]; lengths of vectors stay the same."""
    cos, sin = cos.to(x_BSHd.dtype), sin.to(x_BSHd.dtype)
    if not torch.is_grad_enabled():
        return _rotate_halves(x_BSHd, cos, sin, 1.0)
    rotated: Tensor = _Rotation.apply(x_BSHd, cos, sin)  # type: ignore[no-untyped-call]
    return rotated


class _Rotation(torch.autograd.Function):
    """Rotating back is rotating by the negative angle, so the backward pass needs nothing but the angles."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate_halves(x, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotate_halves(d_out, cos, sin, -1.0), None, None


def _rotate_halves(x: Tensor, cos: Tensor, sin: Tensor, direction: float) -> Tensor:
    # No `out=` into halves, at which torch.compile would break the graph.
    out = x * torch.cat((cos, cos), dim=-1)
    (first, second), (out_first, out_second) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    out_first.addcmul_(second, sin, value=-direction)
    out_second.addcmul_(first, sin, value=direction)
    return out
