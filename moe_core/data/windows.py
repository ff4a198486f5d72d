"""How texts longer than a model's context go through it: cut into windows, each of which is read alone. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_core.data.tokens import TokenDataset
from moe_core.errors import UsageError

TOKENS_PER_BATCH = 4096
"""Tokens that go through the model together, at most; no window is longer."""
WindowRule = Literal["restart", "overlap"]
"""restart: a document is cut into windows of `size` inputs, each of which is followed by a token to predict; the last
window reaches back to be as long as the others. These are the windows of lm-eval's rolling log-likelihood. The last
token of a document predicts nothing and is not read.
overlap: windows of `size` tokens overlap by half: the first half is context, the second half is new. Every token is
read and sees at least half a window before it, as far as its document has that much."""


@dataclass(frozen=True, eq=False)
class WindowBatch:
    """Windows that go through the model together. B windows, S places."""

    index: NDArray[np.int64]
    """[B, S] place in the data set. Padding repeats the window's last token behind the text, where causal attention
    keeps it from changing anything."""
    keep: NDArray[np.bool_]
    """[B, S] the token counts here: it is neither context nor padding."""
    scored: NDArray[np.bool_]
    """[B, S] what this place predicts is scored: the next token of its document counts nowhere else."""

    @property
    def targets(self) -> NDArray[np.int64]:
        """[N] place in the data set of each scored token, in the order of `scored`."""
        return self.index[self.scored] + 1


class Window(NamedTuple):
    """One window of one text: its tokens from `start` to before `end`, of which those before `fresh` are context."""

    start: int
    fresh: int
    end: int


def window_batches(
    dataset: TokenDataset,
    size: int,
    *,
    rule: WindowRule = "overlap",
    tokens_per_batch: int | None = None,
    by_length: bool = False,
) -> Iterator[WindowBatch]:
    """All windows of `dataset`, at most `size` tokens each and `tokens_per_batch` together (None = TOKENS_PER_BATCH).

    They come in the order of the data set; `by_length` puts long ones first, so that windows of like length share a
    batch and padding is scarce. Raises UsageError for fewer than two tokens a batch, which leave none to be predicted.
    """
    limit = TOKENS_PER_BATCH if tokens_per_batch is None else tokens_per_batch
    if limit < 2:
        raise UsageError(f"tokens_per_batch = {limit} is too few; expected 2 or more, e.g. {TOKENS_PER_BATCH}")
    size = min(size, limit)
    cut = reaching_back if rule == "restart" else _overlapping
    windows: list[Window] = []
    for first, end in zip(*dataset.document_bounds(), strict=True):
        windows += cut(int(first), int(first), int(end) - (rule == "restart"), size)
    if by_length:
        windows.sort(key=lambda window: window.start - window.end)
    rows = limit // size
    for at in range(0, len(windows), rows):
        yield _layout(windows[at : at + rows], rule)


def reaching_back(first: int, fresh: int, end: int, size: int) -> list[Window]:
    """Windows of a text from `first` to `end` whose tokens from `fresh` on count, `size` new ones in each; the last
    one reaches back, not beyond `first`, to be whole."""
    return [
        Window(max(first, min(start + size, end) - size), start, min(start + size, end))
        for start in range(fresh, end, size)
    ]


def _overlapping(first: int, fresh: int, end: int, size: int) -> list[Window]:
    """Windows of at most `size` tokens; all but the first are full and bring up to size // 2 new ones."""
    reached = min(fresh + size, end)
    windows = [Window(first, fresh, reached)]
    while reached < end:
        fresh, reached = reached, min(reached + size // 2, end)
        windows.append(Window(reached - size, fresh, reached))
    return windows


def _layout(windows: Sequence[Window], rule: WindowRule) -> WindowBatch:
    starts, fresh, ends = (np.array(column)[:, None] for column in zip(*windows, strict=True))
    index = starts + np.arange((ends - starts).max())
    keep = (index >= fresh) & (index < ends)
    index = np.minimum(index, ends - 1)
    if rule == "restart":
        return WindowBatch(index, keep, keep)
    # What counts here is predicted here, from the place before it.
    scored = np.pad(keep[:, 1:], ((0, 0), (0, 1)))
    return WindowBatch(index, keep, scored)
