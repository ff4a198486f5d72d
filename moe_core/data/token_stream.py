"""The training text as a stream of token ids, wherever it lies, and the batches made of it. B sequences, S places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from moe_core.data.shuffled_order import window_starts, windows_per_epoch
from moe_core.errors import DataError


class TokenStream(Protocol):
    """All documents of the training split one after the other, each as [end-of-text] + its tokens."""

    def __len__(self) -> int:
        """Tokens, end-of-text prefixes included."""

    def windows(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """[len(starts), length]: the ids of the windows that begin at `starts`; each must end within the stream."""


@dataclass(frozen=True)
class TokensInMemory:
    """A stream that is held whole, at four bytes a token."""

    token_ids: NDArray[np.int32]
    """[N]"""

    def __len__(self) -> int:
        """N"""
        return len(self.token_ids)

    def windows(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """See TokenStream."""
        ids: NDArray[np.int64] = self.token_ids[starts[:, None] + np.arange(length)].astype(np.int64)
        return ids


@dataclass(frozen=True)
class DocumentPlaces:
    """Where the documents of the training split lie in its stream."""

    starts: NDArray[np.int64]
    """[n] place of the end-of-text before the first token."""
    tokens: NDArray[np.int64]
    """[n] that and the tokens of the text."""
    source_ids: NDArray[np.int32]
    """[n] number of the source, no number twice."""

    @classmethod
    def none(cls) -> DocumentPlaces:
        """Of a text without documents."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int32))


@dataclass(frozen=True)
class TokenBatch:
    """B sequences of S tokens and what follows each of them."""

    token_ids: NDArray[np.int64]
    """[B, S]"""
    targets: NDArray[np.int64]
    """[B, S]: the next token."""


def training_batch(
    stream: TokenStream, step: int, *, batch_size: int, seq_len: int, seed: int, rows: tuple[int, int] | None = None
) -> TokenBatch:
    """The batch of one step, a pure function of its arguments: the data position is the step, so resuming is exact.

    An epoch cuts the stream into windows of seq_len + 1 tokens, neighbours sharing one, and visits each once in a
    seeded order; every epoch shifts the cuts and shuffles anew. Windows run across document ends, and the end-of-text
    before the next document is a target, so that the model learns where a text ends.
    `rows`: only these sequences of the batch, from the first to before the second; the same as there in the whole one.
    Raises DataError when the stream is smaller than one window.
    """
    if len(stream) < seq_len + 1:
        raise DataError(
            f"the training text has {len(stream)} tokens; expected at least seq_len + 1 = {seq_len + 1}: "
            "give more text or lower training.seq_len"
        )
    first, end = rows or (0, batch_size)
    visits = step * batch_size + np.arange(first, end, dtype=np.int64)
    epochs, places = np.divmod(visits, windows_per_epoch(len(stream), seq_len))
    starts = np.empty(len(visits), dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        starts[here] = window_starts(places[here], len(stream), seq_len, seed, int(epoch))
    ids = stream.windows(starts, seq_len + 1)
    return TokenBatch(np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:]))
