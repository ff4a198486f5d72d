"""What every cache of tokens already seen has, however it keeps their keys and values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_core.config import ModelConfig
from moe_core.errors import UsageError
from moe_core.model.rope import rope_angles


class TokenCache:
    """`length` tokens of `batch_size` sequences, up to `max_len`, all of the same length.

    A router that has to remember earlier tokens keeps its notes here, too.

    model.rope.scheme = dynamic: the angles are those of a text that fills the room, `max_len` tokens, from the first
    token on. So a key is rotated once and never again, and what is read equals an uncached pass of `max_len` tokens.
    (Keys kept unrotated, and rotated anew at each length, would do so in the first layer alone: the keys above it come
    from states that were made at shorter lengths.)
    """

    singly = False
    """Whether a pass may read one token of each sequence only."""

    def __init__(self, config: ModelConfig, batch_size: int, max_len: int, device: torch.device | str) -> None:
        if not 1 <= max_len <= config.max_seq_len:
            raise UsageError(
                f"a cache for {max_len} tokens does not fit the model; expected 1 to model.max_seq_len = "
                f"{config.max_seq_len}; ask for fewer tokens"
            )
        self.batch_size = batch_size
        self.max_len = max_len
        """Tokens per sequence that fit."""
        self.device = torch.device(device)
        self.length = 0
        self._angles = rope_angles(config, 0, max_len, self.device)
        self._notes: dict[nn.Module, Tensor] = {}

    def check_room(self, batch_size: int, new_tokens: int) -> None:
        """Raise UsageError unless `new_tokens` more tokens of `batch_size` sequences fit."""
        if batch_size != self.batch_size:
            raise UsageError(
                f"the cache holds {self.batch_size} sequences, the batch has {batch_size}; make them equal"
            )
        if self.length + new_tokens > self.max_len:
            raise UsageError(
                f"{self.length} cached + {new_tokens} new tokens do not fit a cache of {self.max_len}; "
                "make a larger cache or ask for fewer tokens"
            )

    def write(self, layer: int, keys_BHSd: Tensor, values_BHSd: Tensor) -> tuple[Tensor, Tensor]:
        """Take one layer's new keys and values, after RoPE; return all that they look at, [B, Hkv, ... + S, d], oldest
        first. A layer with a window may be given more. A single new token may stand anywhere among what it sees."""
        raise NotImplementedError

    def look(self, layer: int, queries_BHSd: Tensor) -> None:
        """Is told by which queries, after RoPE, what `write` returned is looked at; most caches need not know."""

    def mask(self, layer: int) -> Tensor | None:  # noqa: ARG002 - most have the same rule for all
        """bool [B, 1, 1, total] or [S, total], True = may look, where sequences differ in length or tokens are left
        out; None = attention's own rule."""
        return None

    def cut_back(self, length: int) -> bool:  # noqa: ARG002
        """Forget all but the first `length` tokens; False, and nothing is changed, where what the next token would
        look at is not there any more."""
        return False

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

    def notes(self, length: int) -> dict[nn.Module, Tensor]:
        """float64 [B, length, width], what each router noted at the first tokens."""
        return {router: notes[:, :length] for router, notes in self._notes.items()}

    def advance(self, new_tokens: int) -> None:
        """Count `new_tokens` as seen; the model calls it once every layer has written."""
        self.length += new_tokens

    @property
    def is_exact(self) -> bool:
        """Whether the next token looks at all that was written, as it was."""
        return True

    @property
    def nbytes(self) -> int:
        """Bytes of memory that its tensors take, room that is still empty included."""
        return self.key_value_bytes + sum(notes.nbytes for notes in self._notes.values())

    @property
    def key_value_bytes(self) -> int:
        """Those of keys and values alone, with the scales that belong to them."""
        raise NotImplementedError

    def _notes_of(self, router: nn.Module, width: int) -> Tensor:
        """float64 [B, max_len, width]; zero at first."""
        if router not in self._notes:
            shape = (self.batch_size, self.max_len, width)
            self._notes[router] = torch.zeros(shape, dtype=torch.float64, device=self.device)
        return self._notes[router]
