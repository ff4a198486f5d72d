"""Keys and values of several texts of unequal lengths, which are read on together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_core.config import ModelConfig
from moe_core.errors import UsageError
from moe_core.model.kv_cache import KVCache


class JoinedCache(KVCache):
    """A KVCache with a length for each row; a pass reads one token of every row. Rows come and go between passes.

    Each row has its own angles, its keys and values are written at its own place, and a mask keeps it from looking
    beyond its own length. What lies there is zero: a masked value still takes part in the product, and 0 * NaN is NaN.
    """

    def __init__(
        self,
        config: ModelConfig,
        slots: int,
        max_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Room for `slots` rows of up to `max_len` tokens; there is none yet."""
        super().__init__(config, slots, max_len, dtype, device)
        self._config = config
        self._lengths: list[int] = []
        self._settle()

    def add(self, cache: KVCache) -> None:
        """Copy the one sequence of `cache` in, as the last row."""
        row, length = len(self._lengths), cache.length
        for mine, theirs in zip((*self.keys, *self.values), (*cache.keys, *cache.values), strict=True):
            held = min(length, theirs.shape[2])
            mine[row, :, :held] = theirs[0, :, :held]
            mine[row, :, held:] = 0
        for router, notes in cache._notes.items():
            self._notes_of(router, notes.shape[2])[row, :length] = notes[0, :length]
        self._lengths.append(length)
        self._settle()

    def take(self, row: int) -> KVCache:
        """Copy a row out, to be read on from alone. The rows behind it move up."""
        length, end = self._lengths.pop(row), len(self._lengths)
        dtype, device = self.keys[0].dtype, self.keys[0].device
        cache = KVCache(self._config, 1, self.max_len, dtype, device)
        cache.advance(length)
        for mine, theirs in zip((*self.keys, *self.values), (*cache.keys, *cache.values), strict=True):
            held = min(length, theirs.shape[2])
            theirs[0, :, :held] = mine[row, :, :held]
            mine[row:end] = mine[row + 1 : end + 1].clone()
        for router, notes in self._notes.items():
            cache._notes_of(router, notes.shape[2])[0, :length] = notes[row, :length]
            notes[row:end] = notes[row + 1 : end + 1].clone()
        self._settle()
        return cache

    def check_room(self, batch_size: int, new_tokens: int) -> None:
        """Raise UsageError unless `new_tokens` is one, `batch_size` the number of rows, and each has room for it."""
        if (batch_size, new_tokens) != (len(self._lengths), 1):
            raise UsageError(
                f"{batch_size} x {new_tokens} tokens were given to a joined cache of {len(self._lengths)} rows; "
                "expected one token for each row"
            )
        if self.length + 1 > self.max_len:
            raise UsageError(f"a row of {self.length} tokens fills a cache of {self.max_len}; take it out first")

    def write(self, layer: int, keys_BHSd: Tensor, values_BHSd: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values, each behind those of its row, or in the place of one that goes out of
        sight; return views up to the longest row."""
        (rows, total), keys, values = self._shown, self.keys[layer], self.values[layer]
        slots_B = self._places_B if self.rooms[layer] == self.max_len else self._ring_slots_B
        keys[self._rows_B, :, slots_B] = keys_BHSd[:, :, 0].to(keys.dtype)
        values[self._rows_B, :, slots_B] = values_BHSd[:, :, 0].to(values.dtype)
        return keys[:rows, :, :total], values[:rows, :, :total]

    def mask(self, layer: int) -> Tensor | None:
        """See TokenCache. A ring that is full holds nothing but what its row sees."""
        return self._mask_B[..., : self.rooms[layer]]

    def cut_back(self, length: int) -> bool:  # noqa: ARG002
        """False: rows are taken out to be cut back."""
        return False

    def angles(self, new_tokens: int) -> tuple[Tensor, Tensor]:  # noqa: ARG002 - it is one
        """Cosine and sine at each row's next position, [B, 1, 1, head_dim / 2]."""
        cos, sin = (table[self._places_B[:, None]] for table in self._angles)
        return cos, sin

    def last_notes(self, router: nn.Module) -> Tensor | None:
        """See KVCache; rows have at least a token each."""
        return self._notes[router][self._rows_B, self._places_B - 1][:, None]

    def note(self, router: nn.Module, notes_BSW: Tensor) -> None:
        """See KVCache."""
        self._notes_of(router, notes_BSW.shape[2])[self._rows_B, self._places_B] = notes_BSW[:, 0]

    def advance(self, new_tokens: int) -> None:
        """Count a token of every row as seen."""
        self._lengths = [length + new_tokens for length in self._lengths]
        self._settle()

    def _settle(self) -> None:
        """Make what a pass needs of the lengths, once for all its layers."""
        device = self.keys[0].device
        self.length = max(self._lengths, default=0)
        self._shown = len(self._lengths), self.length + 1
        self._rows_B = torch.arange(len(self._lengths), device=device)
        room = torch.arange(self.length + 1, device=device)
        self._place(torch.tensor(self._lengths, dtype=torch.int64, device=device), room)

    def _place(self, places_B: Tensor, room: Tensor) -> None:
        """int64 [B], where the next pass writes each row's token, of the places in `room` that are shown."""
        self._places_B, self._ring_slots_B = places_B, self._slot(places_B)
        self._mask_B = (room <= places_B[:, None])[:, None, None]
