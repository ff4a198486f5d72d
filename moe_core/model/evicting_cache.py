"""Keys and values of a budget of tokens: what is beyond it is forgotten, token by token."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.config import ModelConfig
from moe_core.errors import UsageError
from moe_core.model.token_cache import TokenCache

SINKS = 4
"""First tokens that are always kept, as StreamingLLM does."""


class EvictingCache(TokenCache):
    """Attention sinks: the first tokens and the newest, `budget` of them together (StreamingLLM, arXiv:2309.17453).

    A token looks at itself and at budget - 1 others. Which ones depends on its position alone, not on the pieces in
    which a text was read. Within its first `budget` tokens nothing differs from a KVCache, to the bit.

    Keys keep the rotation of the position that their token has in the text. StreamingLLM numbers the tokens that are
    left anew, so that a text may grow beyond the trained length; here none does, since what reads ends at its context
    window and goes on from half of it, and true distances are those that the model has learned. It cannot be cut back.

    Slots 0 to `first` - 1 hold what is kept for good, the others are a ring of the newest tokens.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        budget: int,
        first: int = SINKS,
    ) -> None:
        """`budget`: tokens of each sequence. Raises UsageError unless one is left beside the first ones."""
        super().__init__(config, batch_size, max_len, device)
        if config.attention.window is not None:
            raise UsageError(
                f"a budget of tokens is for layers that look at everything, and model.attention.window is "
                f"{config.attention.window}: that already bounds what is kept; leave out --cache"
            )
        if budget <= first:
            raise UsageError(
                f"a budget of {budget} tokens; expected {first + 1} or more, of which {first} are kept for good"
            )
        self._piece_mask: Tensor | None = None
        self.budget, self.first = min(budget, max_len), min(first, max_len)
        shape = (config.num_layers, batch_size, config.num_kv_heads, self.budget, config.head_dim)
        self._keys, self._values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))

    def write(self, layer: int, keys_BHSd: Tensor, values_BHSd: Tensor) -> tuple[Tensor, Tensor]:
        """See TokenCache. Of a piece that does not fit, what is told to look at is new tensors, and `mask` says
        which token may look where."""
        new, held = keys_BHSd.shape[2], min(self.length, self.budget)
        self._piece_mask = None
        pairs = ((self._keys[layer], keys_BHSd), (self._values[layer], values_BHSd))
        if self.length + new <= self.budget or new == 1:
            if self.length >= self.budget:
                self._make_room(layer, self._slot(self.length))
            at = self._slot(self.length)
            for room, given in pairs:
                room.narrow(2, at, new).copy_(given)
            seen = min(held + new, self.budget)
            return self._keys[layer].narrow(2, 0, seen), self._values[layer].narrow(2, 0, seen)
        places = torch.tensor([*self._positions(), *range(self.length, self.length + new)], device=self.device)
        asking_S1 = places[-new:, None]
        near_ST = (places <= asking_S1) & (places > asking_S1 - (self.budget - self.first))
        self._piece_mask = near_ST | ((places < self.first) & (places <= asking_S1))
        seen_both = [torch.cat((room[:, :, :held], given.to(room.dtype)), dim=2) for room, given in pairs]
        # Of tokens that share a slot the last one stays.
        stay = {self._slot(position): place for place, position in enumerate(places.tolist())}
        for (room, _), seen_T in zip(pairs, seen_both, strict=True):
            room[:, :, list(stay)] = seen_T[:, :, list(stay.values())]
        return seen_both[0], seen_both[1]

    def mask(self, layer: int) -> Tensor | None:  # noqa: ARG002
        """See TokenCache."""
        return self._piece_mask

    @property
    def is_exact(self) -> bool:
        """See TokenCache."""
        return self.length < self.budget

    @property
    def key_value_bytes(self) -> int:
        """See TokenCache."""
        return self._keys.nbytes + self._values.nbytes

    def _make_room(self, layer: int, slot: int) -> None:
        """The token in this slot, the oldest of the ring, has to go; here nothing is left of it."""

    def _slot(self, position: int) -> int:
        """Where the token of a position is held as long as it is among the newest, or for good."""
        if position < self.budget:
            return position
        return self.first + (position - self.first) % (self.budget - self.first)

    def _positions(self) -> list[int]:
        """Of the tokens held, slot by slot."""
        kept = [*range(min(self.first, self.length))]
        newest = range(max(self.first, self.length - (self.budget - self.first)), self.length)
        return kept + sorted(newest, key=self._slot)


class HeavyHitterCache(EvictingCache):
    """Half of the budget for the newest tokens, half for those that were looked at most (H2O, arXiv:2306.14048).

    Each layer and key/value head counts for itself: the attention that a token got from every query that came while it
    was held, summed over the query heads that share the key. A token that leaves the newest ones takes the place of the
    held one with the smallest sum, unless its own is smaller still. Attention weights come from no fused kernel; they
    are computed once more beside it, for one query of each head, so a pass reads one token of each sequence.
    """

    singly = True

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        budget: int,
    ) -> None:
        """`budget`: tokens of each sequence. Raises UsageError for fewer than two, and for a model with sinks."""
        if config.attention.sinks:
            raise UsageError(
                "heavy hitters are weighed by attention without sinks, and model.attention.sinks is true; use another "
                "cache"
            )
        super().__init__(config, batch_size, max_len, dtype, device, budget=budget, first=max(1, (budget + 1) // 2))
        self._sums = torch.zeros(self._keys.shape[:-1], dtype=torch.float32, device=device)

    def check_room(self, batch_size: int, new_tokens: int) -> None:
        """See TokenCache; new_tokens is one."""
        super().check_room(batch_size, new_tokens)
        if new_tokens != 1:
            raise UsageError(
                f"{new_tokens} tokens at once for a cache of heavy hitters; expected one of each sequence: which stay "
                "is decided behind each"
            )

    def look(self, layer: int, queries_BHSd: Tensor) -> None:
        """See TokenCache: add to what each token held was looked at."""
        held = min(self.length + 1, self.budget)
        sums, keys = self._sums[layer, :, :, :held], self._keys[layer, :, :, :held]
        B, heads, _, width = keys.shape
        queries_BHGd = queries_BHSd.reshape(B, heads, -1, width).float()
        weights = torch.softmax(queries_BHGd @ keys.float().transpose(-1, -2) * width**-0.5, dim=-1)
        sums += weights.sum(dim=2)

    @property
    def key_value_bytes(self) -> int:
        """See TokenCache, the sums included."""
        return super().key_value_bytes + self._sums.nbytes

    def _make_room(self, layer: int, slot: int) -> None:
        """The token leaves the newest ones: it or the least looked at of the others goes, by layer and head."""
        sums = self._sums[layer]
        least, at = sums[:, :, : self.first].min(dim=-1, keepdim=True)
        stays = sums[:, :, slot : slot + 1] >= least  # as much: the older one goes
        for room in (self._keys[layer], self._values[layer], sums[..., None]):
            place = at[..., None].expand(-1, -1, -1, room.shape[-1])
            leaving, old = room[:, :, slot : slot + 1], room.gather(2, place)
            room.scatter_(2, place, torch.where(stays[..., None], leaving, old))
        sums[:, :, slot] = 0
