"""Rotary position embedding (RoFormer, arXiv:2104.09864, eq. 34), half-split as Hugging Face and Llama store it.

Nothing is stored in the model: the angles of a forward pass are computed once and shared by all layers. That costs
microseconds, keeps them exact when the weights are bfloat16, and leaves no buffer to restore after a meta-device build.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rope_angles(start: int, length: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of position * theta^(-2i / head_dim), each float32 [length, head_dim / 2].

    Positions run from `start` to `start + length - 1`.
    """
    exponents = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    positions = torch.arange(start, start + length, device=device, dtype=torch.float32)
    angles = torch.outer(positions, 1.0 / (theta**exponents))
    return angles.cos(), angles.sin()


def apply_rope(x_BSHd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + head_dim / 2) of every head of [B, S, H, head_dim]; lengths of vectors stay the same."""
    cos, sin = cos.to(x_BSHd.dtype)[:, None, :], sin.to(x_BSHd.dtype)[:, None, :]
    first, second = x_BSHd.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
