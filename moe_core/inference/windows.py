"""How texts longer than a model's context go through it.

Documents are cut into windows of `context_window` tokens that overlap by half: a window's first half is context that
an earlier window has accounted for already, its second half is new. So every token counts exactly once, sees at least
half a window before it (as far as its document has that much), and never a position beyond the trained length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_core.data.document import Document
from moe_core.data.tokens import TokenDataset
from moe_core.errors import UsageError
from moe_core.inference.open import language_model
from moe_core.inference.protocol import LanguageModel, Loaded, check_token_ids

TOKENS_PER_BATCH = 4096
"""Tokens that go through the model together, at most; no window is longer."""


@dataclass(frozen=True, eq=False)
class WindowBatch:
    """Windows that go through the model together. B windows, S places."""

    index: NDArray[np.int64]
    """[B, S] place in the data set. Padding repeats the window's last token behind the text, where causal attention
    keeps it from changing anything."""
    keep: NDArray[np.bool_]
    """[B, S] the token counts here: it is neither context nor padding."""
    scored: NDArray[np.bool_]
    """[B, S - 1] the token at the place after this one counts here and is predicted: it does not begin a document."""

    @property
    def targets(self) -> NDArray[np.int64]:
        """[N] place in the data set of each scored token, in the order of `scored`."""
        return self.index[:, 1:][self.scored]


def as_dataset(loaded: Loaded | LanguageModel, documents: Sequence[Document] | TokenDataset) -> TokenDataset:
    """Documents tokenised, their domains numbered as they first occur.

    Raises UsageError with no token to score, or one that the model cannot read.
    """
    model = language_model(loaded)
    if isinstance(documents, TokenDataset):
        dataset = documents
    else:
        domains = list(dict.fromkeys(document.domain for document in documents))
        dataset = TokenDataset.build(documents, model.tokenizer, domains)
    check_token_ids(model, dataset.token_ids)
    if not (dataset.positions > 0).any():
        raise UsageError("the text has no token to score; expected at least one document that is not empty")
    return dataset


class _Window(NamedTuple):
    start: int
    """First token, as an index into the data set."""
    fresh: int
    """First token that no earlier window accounts for."""
    end: int


def window_batches(dataset: TokenDataset, size: int, tokens_per_batch: int | None = None) -> Iterator[WindowBatch]:
    """All windows of `dataset` in its order; at most `size` tokens a window, and `tokens_per_batch` together.

    None = TOKENS_PER_BATCH. Raises UsageError for fewer than two, which leave no token to be predicted.
    """
    limit = TOKENS_PER_BATCH if tokens_per_batch is None else tokens_per_batch
    if limit < 2:
        raise UsageError(f"tokens_per_batch = {limit} is too few; expected 2 or more, e.g. {TOKENS_PER_BATCH}")
    size = min(size, limit)
    windows = _windows(dataset, size)
    rows = limit // size
    for first in range(0, len(windows), rows):
        index, keep = _layout(windows[first : first + rows])
        yield WindowBatch(index, keep, keep[:, 1:] & (dataset.positions[index[:, 1:]] > 0))


def _windows(dataset: TokenDataset, size: int) -> list[_Window]:
    """Windows of at most `size` tokens; all but the first of a document are full and bring up to size // 2 new ones."""
    windows: list[_Window] = []
    for start, stop in zip(*dataset.document_bounds(), strict=True):
        end = min(int(start) + size, int(stop))
        windows.append(_Window(int(start), int(start), end))
        while end < stop:
            fresh, end = end, min(end + size // 2, int(stop))
            windows.append(_Window(end - size, fresh, end))
    return windows


def _layout(windows: Sequence[_Window]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Index and keep of a WindowBatch."""
    starts, fresh, ends = (np.array(column)[:, None] for column in zip(*windows, strict=True))
    index = starts + np.arange((ends - starts).max())
    keep = (index >= fresh) & (index < ends)
    return np.minimum(index, ends - 1), keep
