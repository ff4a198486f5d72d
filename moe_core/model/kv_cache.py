"""Keys and values of the tokens already seen, in memory allocated once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_core.config import ModelConfig
from moe_core.errors import UsageError
from moe_core.model.rope import rope_angles


class KVCache:
    """Room for `max_len` tokens of `batch_size` sequences, all of the same length so far.

    keys, values: [layers, B, num_kv_heads, max_len, head_dim]; positions at and after `length` hold nothing of meaning.
    Keys are stored after RoPE. A router that has to remember earlier tokens keeps its notes here, too. Setting `length`
    to a smaller number cuts the texts back. For sequences of unequal lengths there is JoinedCache.
    """

    mask: Tensor | None = None
    """bool [B, 1, 1, total], True = may look, where the sequences differ in length; None = attention's own rule."""

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 1 <= max_len <= config.max_seq_len:
            raise UsageError(
                f"a cache for {max_len} tokens does not fit the model; expected 1 to model.max_seq_len = "
                f"{config.max_seq_len}; ask for fewer tokens"
            )
        shape = (config.num_layers, batch_size, config.num_kv_heads, max_len, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0
        self._angles = rope_angles(0, max_len, config.head_dim, config.rope_theta, self.keys.device)
        self._notes: dict[nn.Module, Tensor] = {}

    @property
    def max_len(self) -> int:
        """Tokens per sequence that fit."""
        return self.keys.shape[3]

    def check_room(self, batch_size: int, new_tokens: int) -> None:
        """Raise UsageError unless `new_tokens` more tokens of `batch_size` sequences fit."""
        if batch_size != self.keys.shape[1]:
            raise UsageError(
                f"the cache holds {self.keys.shape[1]} sequences, the batch has {batch_size}; make them equal"
            )
        if self.length + new_tokens > self.max_len:
            raise UsageError(
                f"{self.length} cached + {new_tokens} new tokens do not fit a cache of {self.max_len}; "
                "make a larger cache or ask for fewer tokens"
            )

    def write(self, layer: int, keys_BHSd: Tensor, values_BHSd: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values behind the old ones; return views of all, [B, Hkv, length + S, d]."""
        new = keys_BHSd.shape[2]
        keys, values = self.keys[layer], self.values[layer]
        keys.narrow(2, self.length, new).copy_(keys_BHSd)
        values.narrow(2, self.length, new).copy_(values_BHSd)
        return keys.narrow(2, 0, self.length + new), values.narrow(2, 0, self.length + new)

    def angles(self, new_tokens: int) -> tuple[Tensor, Tensor]:
        """rope_angles of the next `new_tokens` positions, as views."""
        cos, sin = (table[self.length : self.length + new_tokens] for table in self._angles)
        return cos, sin

    def last_notes(self, router: nn.Module) -> Tensor | None:
        """float64 [B, 1, width], what a router noted at the last token seen; None before the first."""
        return self._notes[router][:, self.length - 1 : self.length] if self.length else None

    def note(self, router: nn.Module, notes_BSW: Tensor) -> None:
        """Keep a router's notes on each of the new tokens, float64 [B, S, width]."""
        kept = self._notes_of(router, notes_BSW.shape[2])
        kept[:, self.length : self.length + notes_BSW.shape[1]] = notes_BSW

    def advance(self, new_tokens: int) -> None:
        """Count `new_tokens` as seen; the model calls it once every layer has written."""
        self.length += new_tokens

    @property
    def nbytes(self) -> int:
        """Bytes of memory that its tensors take."""
        return sum(held.nbytes for held in (self.keys, self.values, *self._notes.values()))

    def _notes_of(self, router: nn.Module, width: int) -> Tensor:
        """float64 [B, max_len, width]; zero at first."""
        if router not in self._notes:
            shape = (self.keys.shape[1], self.max_len, width)
            self._notes[router] = torch.zeros(shape, dtype=torch.float64, device=self.keys.device)
        return self._notes[router]
