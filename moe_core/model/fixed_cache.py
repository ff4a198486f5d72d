"""Keys and values for passes that have the same shapes every time, so that an accelerator can replay them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_core.config import ModelConfig
from moe_core.errors import UsageError
from moe_core.model.joined_cache import JoinedCache


class FixedCache(JoinedCache):
    """A JoinedCache of which a pass reads one token in every slot, vacant or not, and looks at the whole room.

    Where the rows stand is a tensor (`stand_at`), and the pass counts nothing itself: its operations are the same
    whoever is there and however long the texts are. What comes of a vacant slot has no meaning.
    """

    def __init__(
        self,
        config: ModelConfig,
        slots: int,
        max_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(config, slots, max_len, dtype, device)
        self._shown = slots, max_len
        self._rows_B = torch.arange(slots, device=device)
        self._room = torch.arange(max_len, device=device)
        self.stand_at(torch.zeros(slots, dtype=torch.int64, device=device))

    @property
    def slots(self) -> int:
        """Rows that a pass reads."""
        return self.keys[0].shape[0]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row that is there."""
        return list(self._lengths)

    def stand_at(self, places_B: Tensor) -> None:
        """int64 [slots], where the next pass writes each row's token."""
        self._place(places_B, self._room)

    def check_room(self, batch_size: int, new_tokens: int) -> None:
        """See JoinedCache; `batch_size` is the number of slots."""
        if (batch_size, new_tokens) != (self.slots, 1):
            raise UsageError(
                f"{batch_size} x {new_tokens} tokens were given to a fixed cache of {self.slots} slots; expected one "
                "token for each slot"
            )
        super().check_room(len(self._lengths), 1)

    def last_notes(self, router: nn.Module) -> Tensor | None:
        """See JoinedCache; None before the first pass, while no text is there."""
        return super().last_notes(router) if router in self._notes else None

    def advance(self, new_tokens: int) -> None:
        """Nothing: a pass that is replayed runs no Python. Whoever made it calls `count` instead."""

    def count(self) -> None:
        """A token of every row is read."""
        super().advance(1)

    def clear(self) -> None:
        """Let all rows leave."""
        self._lengths = []
        self._settle()

    def _settle(self) -> None:
        self.length = max(self._lengths, default=0)
