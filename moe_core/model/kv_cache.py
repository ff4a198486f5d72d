"""Keys and values of the tokens already seen, in memory allocated once."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from moe_core.config import ModelConfig
from moe_core.model.token_cache import TokenCache

Places = TypeVar("Places", int, Tensor)


class KVCache(TokenCache):
    """Room for `max_len` tokens of `batch_size` sequences, all of the same length so far, kept as they are.

    keys, values: for each layer [B, num_kv_heads, room, head_dim]; what lies at and after `length` has no meaning. Keys
    are stored after RoPE. A layer with a window has room for the tokens that it can still look at, and a new token
    takes the place of the one that goes out of sight: its memory does not grow with the text. For sequences of unequal
    lengths there is JoinedCache, for less memory QuantisedCache and EvictingCache.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(config, batch_size, max_len, device)
        self._first = config.attention.first_tokens
        self._window = config.attention.window or max_len
        seen = [config.attention.sees(layer) for layer in range(config.num_layers)]
        self.rooms = [max_len if sees is None else min(sees, max_len) for sees in seen]
        """Tokens of one sequence that each layer has room for."""
        self.keys, self.values = (
            [
                torch.zeros(batch_size, config.num_kv_heads, room, config.head_dim, dtype=dtype, device=device)
                for room in self.rooms
            ]
            for _ in range(2)
        )
        self._reached = 0
        """The largest `length` that there was: what a ring holds is up to there."""

    def write(self, layer: int, keys_BHSd: Tensor, values_BHSd: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values; return all, [B, Hkv, length + S, d], or those in sight, as views
        wherever a layer has room for all or one token is new."""
        new, room = keys_BHSd.shape[2], self.rooms[layer]
        pairs = (self.keys[layer], keys_BHSd), (self.values[layer], values_BHSd)
        if self.length + new <= room:
            keys, values = (self._appended(held, given) for held, given in pairs)
        elif new == 1:
            keys, values = (self._replaced(held, given) for held, given in pairs)
        else:
            keys, values = (self._gone_round(held, given) for held, given in pairs)
        return keys, values

    def cut_back(self, length: int) -> bool:
        """See TokenCache. A ring has forgotten what stood more than a window before the last token."""
        if self._reached - length > 1 and self._reached > min(self.rooms):
            return False
        self.length = length
        return True

    def advance(self, new_tokens: int) -> None:
        """See TokenCache."""
        super().advance(new_tokens)
        self._reached = max(self._reached, self.length)

    @property
    def key_value_bytes(self) -> int:
        """See TokenCache."""
        return sum(held.nbytes for held in (*self.keys, *self.values))

    def _appended(self, held: Tensor, given: Tensor) -> Tensor:
        held.narrow(2, self.length, given.shape[2]).copy_(given)
        return held.narrow(2, 0, self.length + given.shape[2])

    def _replaced(self, held: Tensor, given: Tensor) -> Tensor:
        """One token in the place of the oldest: what is left is all that it sees, in an order that does not matter."""
        held.narrow(2, self._slot(self.length), 1).copy_(given)
        return held

    def _gone_round(self, held: Tensor, given: Tensor) -> Tensor:
        """Several tokens, of which the first still look at what the last ones replace."""
        first, start, end = self._first, self.length, self.length + given.shape[2]
        old = held[:, :, :start]
        if start > held.shape[2]:
            oldest = self._slot(start)
            old = torch.cat((held[:, :, :first], held[:, :, oldest:], held[:, :, first:oldest]), dim=2)
        seen = torch.cat((old, given.to(held.dtype)), dim=2)
        places = torch.arange(start, end, device=held.device)
        places = places[(places < first) | (places >= end - self._window)]
        held[:, :, self._slot(places)] = given[:, :, places - start].to(held.dtype)
        return seen

    def _slot(self, places: Places) -> Places:
        """Where a layer with a window keeps the tokens of these positions: the first ones stay, the others go round."""
        beyond = places - self._first
        return places - beyond * (beyond >= 0) // self._window * self._window
