"""Rotary position embedding (RoFormer, arXiv:2104.09864, eq. 34), half-split as Hugging Face and Llama store it.

Nothing is stored in the model. The angles of a forward pass are computed once and shared by all layers; a cache keeps
the angles of a text that is being written. So they stay exact when the weights are bfloat16, and no buffer has to be
restored after a meta-device build.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from moe_core.config import ModelConfig


def rope_angles(config: ModelConfig, start: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of position * inverse frequency, each times the scheme's scale: [length, 1, head_dim / 2].

    float32; positions run from `start` to `start + length - 1`, and the middle axis spreads over the heads. The dynamic
    scheme stretches for a text that ends there.
    """
    inverse, scale = inverse_frequencies(config, start + length, device)
    positions = torch.arange(start, start + length, device=device, dtype=torch.float32)
    angles = torch.outer(positions, inverse)[:, None]
    cos, sin = angles.cos(), angles.sin()
    return (cos, sin) if scale == 1.0 else (cos * scale, sin * scale)


def inverse_frequencies(config: ModelConfig, tokens: int, device: torch.device) -> tuple[Tensor, float]:
    """Radians that each pair turns from one position to the next, float32 [head_dim / 2], and what cosine and sine are
    multiplied by, for a text of `tokens` tokens.

    The formulas are those of transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS (a test compares them).
    """
    rope, width = config.rope, config.head_dim
    original = rope.original_length or config.max_seq_len
    exponents = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
    inverse = 1.0 / (rope_base(config, tokens) ** exponents)
    if rope.scheme == "linear":
        return inverse / rope.factor, 1.0
    if rope.scheme == "yarn":
        scale = 0.1 * math.log(rope.factor) + 1.0 if rope.attention_factor is None else rope.attention_factor
        return _interpolated(inverse, rope.factor, _yarn_ramp(config, original, device)), scale
    if rope.scheme == "llama3":
        turns = original * inverse / (2 * math.pi)
        kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        return _interpolated(inverse, rope.factor, kept.clamp(0, 1)), 1.0
    return inverse, 1.0


def rope_base(config: ModelConfig, tokens: int) -> float:
    """model.rope_theta; larger where the scheme (ntk, dynamic) stretches by it, for a text of `tokens` tokens."""
    rope, width = config.rope, config.head_dim
    original = rope.original_length or config.max_seq_len
    if rope.scheme == "ntk":
        stretch = rope.factor
    elif rope.scheme == "dynamic":
        stretch = rope.factor * max(tokens, original) / original - (rope.factor - 1)
    else:
        return config.rope_theta
    return float(config.rope_theta * stretch ** (width / (width - 2)))


def _interpolated(inverse: Tensor, factor: float, kept: Tensor) -> Tensor:
    """Each frequency between itself (kept = 1) and itself divided by `factor` (0)."""
    return inverse / factor * (1 - kept) + inverse * kept


def _yarn_ramp(config: ModelConfig, original: int, device: torch.device) -> Tensor:
    """How much of each pair's frequency YaRN keeps: 1 for the fast ones, 0 for the slow ones."""

    def pair_that_turns(times: float) -> float:
        turns = original / (times * 2 * math.pi)
        return config.head_dim * math.log(turns) / (2 * math.log(config.rope_theta))

    # The end is capped at head_dim - 1, although there are half as many pairs: so it was published, and so it is used.
    low = max(math.floor(pair_that_turns(config.rope.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(config.rope.beta_slow)), config.head_dim - 1)
    pairs = torch.arange(config.head_dim // 2, device=device, dtype=torch.float32)
    return 1 - ((pairs - low) / (high - low if high != low else 0.001)).clamp(0, 1)


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
