"""Root-mean-square normalisation (arXiv:1910.07467, eq. 4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from moe_core.model import one_row


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) over the last axis, in float32, cast back, then times `weight` [dim].

    The multiplication follows the cast, as in Hugging Face's Mixtral and Qwen3-MoE, so that exported models agree.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Any [..., dim] -> the same shape and dtype."""
        if one_row.alone(x):
            return one_row.rms_norm(x, self.weight, self.eps)
        if torch.is_grad_enabled() and x.dtype == self.weight.dtype == torch.float32:
            normed: Tensor = _FusedRMSNorm.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
            return normed
        unit: Tensor = nn.functional.rms_norm(x.float(), x.shape[-1:], eps=self.eps)
        return self.weight * unit.to(x.dtype)


class _FusedRMSNorm(torch.autograd.Function):
    """The same, its backward by hand: autograd makes twice the passes over memory (a default step has 17 norms)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        normed: Tensor = x * scale
        ctx.save_for_backward(normed, weight, scale)
        return normed * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        # With n = x * scale and g = d_out * weight: dx = scale * (g - n * mean(g * n)).
        normed, weight, scale = ctx.saved_tensors
        products = (d_out * normed).reshape(-1, len(weight))
        means = torch.mv(products, weight).div_(len(weight)).view_as(scale)
        d_x: Tensor = (d_out * weight).addcmul_(normed, means, value=-1.0).mul_(scale)
        return d_x, products.sum(dim=0), None
