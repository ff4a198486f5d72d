"""Keys and values in few bits, as KIVI keeps them (arXiv:2402.02750): keys per channel, values per token.

A few channels of the keys are large in all tokens, so a scale that many tokens of one channel share keeps the others
exact. Values have no such channels: a token's own scale keeps its error to itself.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from moe_core.config import ModelConfig
from moe_core.errors import RunError, UsageError
from moe_core.model.token_cache import TokenCache

GROUP = 32
"""Numbers with one scale, as in KIVI. As many of the newest tokens are kept as they are, unless others are asked for;
KIVI keeps 128, of texts of thousands."""
BITS = (8, 4, 2)
_UNIT = 2.0**-11
"""Half the distance of neighbouring float16 numbers, as a part of them."""
_LEAST = 2.0**-24
"""The distance of those next to zero."""


class Codes(NamedTuple):
    """Groups of numbers in few bits: number = zero + scale * code, off by scale / 2 at most."""

    packed: Tensor
    """uint8 [..., N * bits / 8], the first code of a byte in its lowest bits."""
    scale: Tensor
    """float16 [..., 1]"""
    zero: Tensor
    """float16 [..., 1], not above the group's least number."""


def quantise(numbers: Tensor, bits: int) -> Codes:
    """[..., N] -> codes of each group of N, asymmetric, to nearest; N * bits is a multiple of 8.

    Zero point and scale are rounded to float16 such that the steps still span the group: no code is clipped, and the
    error is at most half of the scale that is kept. Raises RunError for numbers that float16 cannot hold.
    """
    full, levels = numbers.float(), 2**bits - 1
    least, most = full.amin(-1, keepdim=True), full.amax(-1, keepdim=True)
    zero = (least - least.abs() * _UNIT - _LEAST).half()
    scale = ((most - zero.float()) / levels * (1 + 2 * _UNIT) + _LEAST).half()
    if not (torch.isfinite(scale).all() and torch.isfinite(zero).all()):
        raise RunError(
            f"keys or values of up to {float(full.abs().max()):.3g} cannot be kept in {bits} bits; expected numbers "
            "within 65,504; read the text without --cache"
        )
    codes = ((full - zero.float()) / scale.float()).round_().clamp_(0, levels).to(torch.uint8)
    parts = _split(codes, -1, 8 // bits)
    packed = parts[..., 0].clone()
    for place in range(1, 8 // bits):
        packed |= parts[..., place] << (bits * place)
    return Codes(packed, scale, zero)


def dequantise(codes: Codes, bits: int, dtype: torch.dtype) -> Tensor:
    """[..., N], the numbers that the codes stand for."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.packed.device)
    parts = (codes.packed[..., None] >> shifts) & (2**bits - 1)
    return torch.addcmul(codes.zero.float(), parts.flatten(-2).float(), codes.scale.float()).to(dtype)


class QuantisedCache(TokenCache):
    """The newest `recent` to recent + group - 1 tokens as they are, all before them in few bits.

    Once `group` tokens stand before the recent ones they are quantised, once and for all: history is never
    re-quantised, and which tokens are depends on the length alone, not on the pieces in which a text was read. The
    tokens of a piece look at each other as they are. It cannot be cut back.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        bits: int = 4,
        group: int = GROUP,
        recent: int = GROUP,
    ) -> None:
        """`bits`: one of BITS. `group`: tokens whose keys share a scale, channel by channel, and channels whose values
        do, token by token (the whole head where it has fewer). Raises UsageError for what does not fill bytes."""
        super().__init__(config, batch_size, max_len, device)
        width = min(group, config.head_dim)
        usual = min(GROUP, config.head_dim)
        if bits not in BITS or group * bits % 8 or config.head_dim % width or width * bits % 8:
            raise UsageError(
                f"groups of {group} numbers in {bits} bits; expected one of {', '.join(map(str, BITS))} bits and "
                f"groups of whole bytes that divide model.head_dim = {config.head_dim}, such as {usual}"
            )
        if recent < 1:
            raise UsageError(f"recent = {recent} tokens kept as they are; expected 1 or more, such as {GROUP}")
        self.bits, self.group, self.recent, self.dtype, self._width = bits, group, recent, dtype, width
        rows = (config.num_layers, batch_size, config.num_kv_heads)
        groups, parts = self.quantised(max_len) // group, config.head_dim // width
        self._tail = [
            torch.zeros(*rows, min(max_len, recent + group - 1), config.head_dim, dtype=dtype, device=device)
            for _ in range(2)
        ]
        # A group of keys is `group` tokens of a channel; one of values is `width` channels of a token.
        self._keys = _room((*rows, groups, config.head_dim), group, bits, self.device)
        self._values = _room((*rows, groups * group, parts), width, bits, self.device)

    def quantised(self, length: int) -> int:
        """How many of so many tokens are kept in few bits."""
        return max(0, length - self.recent) // self.group * self.group

    def write(self, layer: int, keys_BHSd: Tensor, values_BHSd: Tensor) -> tuple[Tensor, Tensor]:
        """See TokenCache; the history comes as new tensors, of this layer alone."""
        new, old = keys_BHSd.shape[2], self.quantised(self.length)
        waiting = [
            torch.cat((tail[layer, :, :, : self.length - old], given.to(self.dtype)), dim=2)
            for tail, given in zip(self._tail, (keys_BHSd, values_BHSd), strict=True)
        ]
        seen = waiting
        if old:
            seen = [torch.cat(both, dim=2) for both in zip(self._history(layer, old), waiting, strict=True)]
        ready = self.quantised(self.length + new) - old
        if ready:
            self._quantise(layer, old, *(part[:, :, :ready] for part in waiting))
        for tail, part in zip(self._tail, waiting, strict=True):
            tail[layer, :, :, : part.shape[2] - ready] = part[:, :, ready:]
        return seen[0], seen[1]

    @property
    def is_exact(self) -> bool:
        """See TokenCache."""
        return not self.quantised(self.length)

    @property
    def key_value_bytes(self) -> int:
        """See TokenCache: codes, scales, zero points and the recent tokens."""
        return sum(held.nbytes for held in (*self._tail, *self._keys, *self._values))

    def _quantise(self, layer: int, old: int, keys_BHSd: Tensor, values_BHSd: Tensor) -> None:
        """Append tokens of whole groups behind `old` ones."""
        keys = quantise(_split(keys_BHSd, 2, self.group).transpose(-1, -2), self.bits)
        first = old // self.group
        for room, part in zip(self._keys, keys, strict=True):
            room[layer, :, :, first : first + part.shape[2]] = part
        values = quantise(_split(values_BHSd, 3, self._width), self.bits)
        for room, part in zip(self._values, values, strict=True):
            room[layer, :, :, old : old + part.shape[2]] = part

    def _history(self, layer: int, old: int) -> tuple[Tensor, Tensor]:
        """The first `old` tokens of a layer, as far as their bits tell: keys, values [B, Hkv, old, d]."""
        keys = Codes(*(room[layer, :, :, : old // self.group] for room in self._keys))
        values = Codes(*(room[layer, :, :, :old] for room in self._values))
        return (
            dequantise(keys, self.bits, self.dtype).transpose(-1, -2).flatten(2, 3),
            dequantise(values, self.bits, self.dtype).flatten(3),
        )


def _split(numbers: Tensor, axis: int, size: int) -> Tensor:
    """An axis of N numbers as two, of N / size and size."""
    at = axis % numbers.ndim
    return numbers.reshape(*numbers.shape[:at], -1, size, *numbers.shape[at + 1 :])


def _room(groups: tuple[int, ...], size: int, bits: int, device: torch.device) -> Codes:
    """Empty room for groups of `size` numbers."""
    scale, zero = (torch.zeros(*groups, 1, dtype=torch.float16, device=device) for _ in range(2))
    return Codes(torch.zeros(*groups, size * bits // 8, dtype=torch.uint8, device=device), scale, zero)
