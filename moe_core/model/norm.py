"""Root-mean-square normalisation (arXiv:1910.07467, eq. 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * (wide * scale).to(x.dtype)
