"""How texts longer than a model's context go through it: cut into windows, each of which is read alone. No torch.

A document is cut into windows of `size` inputs, each of which is followed by a token to predict. Context restarts at a
window's border; the last window reaches back to be as long as the others. These are the windows of lm-eval's rolling
log-likelihood (docs/decisions/0009). The last token of a document predicts nothing: where it counts all the same, as
for routing, and its window is full, it is read once more, in a window that ends with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_core.data.tokens import TokenDataset
from moe_core.errors import UsageError

TOKENS_PER_BATCH = 4096
"""Tokens that go through the model together, at most; no window is longer."""
_LIKE, _SMALL = 0.85, 0.125
"""Windows that share a batch are at least this part of the longest one, once the batch has this part of its places."""
WINDOW_RULE = "restart"
"""Names the rule above; kept beside every figure that was made by it."""
OVERLAPPING_WINDOWS = "overlap"
"""The rule of what was found by `ablate` before figures named theirs: windows that overlapped by half."""


def window_words(size: int | None = None, rule: str = WINDOW_RULE) -> str:
    """The rule in a sentence, for whoever reads a figure; `size` tokens a window, None = the trained length."""
    length = "the trained length" if size is None else f"{size:,} tokens"
    if rule == WINDOW_RULE:
        return f"Each document is read alone, in windows of {length}: context restarts at a window's border."
    if rule == OVERLAPPING_WINDOWS:
        return (
            f"Measured by an older rule, in windows of {length} that overlap by half; "
            "not to be compared with newer figures."
        )
    return f"Measured by a window rule that this version does not know ({rule!r})."


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
    every_token: bool = True,
    tokens_per_batch: int | None = None,
    by_length: bool = False,
) -> Iterator[WindowBatch]:
    """All windows of `dataset`, at most `size` tokens each and `tokens_per_batch` together (None = TOKENS_PER_BATCH).

    Without `every_token` the last token of each document is left out, which scores the same in fewer windows.
    They come in the order of the data set; `by_length` puts long ones first, so that windows of like length share a
    batch and padding is scarce. Raises UsageError for fewer than two tokens a batch, which leave none to be predicted.
    """
    limit = TOKENS_PER_BATCH if tokens_per_batch is None else tokens_per_batch
    size = longest_window(size, tokens_per_batch)
    windows, last = _all_windows(dataset, size, every_token=every_token)
    if by_length:
        windows.sort(key=lambda window: window.start - window.end)
    rows = limit // size
    for at in range(0, len(windows), rows):
        index, keep = _layout(windows[at : at + rows])
        yield WindowBatch(index, keep, keep & ~last[index])


@dataclass(frozen=True, eq=False)
class WindowGroup:
    """Windows that follow one another, put into batches by length so that padding is scarce."""

    start: int
    end: int
    """Their tokens that count are those of the data set from `start` to before `end`."""
    batches: list[WindowBatch]


def window_groups(dataset: TokenDataset, size: int, *, places: int, tokens: int) -> Iterator[WindowGroup]:
    """The windows of `window_batches`, at most `size` tokens each, in groups of about as many `tokens`.

    A batch has as many windows as `places` hold, padding counted: many short texts go through the model together.
    """
    windows, last = _all_windows(dataset, size, every_token=True)
    at = 0
    while at < len(windows):
        until = at + 1
        while until < len(windows) and windows[until].end - windows[at].fresh <= tokens:
            until += 1
        group = sorted(windows[at:until], key=lambda window: window.start - window.end)
        batches = []
        while group:
            rows = _rows_together([window.end - window.start for window in group], places)
            index, keep = _layout(group[:rows])
            batches.append(WindowBatch(index, keep, keep & ~last[index]))
            del group[:rows]
        yield WindowGroup(windows[at].fresh, windows[until - 1].end, batches)
        at = until


def _rows_together(lengths: Sequence[int], places: int) -> int:
    """How many of some windows, the longest first, share a batch: shorter ones only where a pass is small without."""
    longest, rows = lengths[0], 1
    for length in lengths[1 : max(1, places // longest)]:
        if length < _LIKE * longest and rows * longest >= places * _SMALL:
            break
        rows += 1
    return rows


def longest_window(size: int, tokens_per_batch: int | None) -> int:
    """Tokens of a window: `size`, or fewer where a batch has no more (None = TOKENS_PER_BATCH).

    Raises UsageError for fewer than two tokens a batch, which leave none to be predicted.
    """
    limit = TOKENS_PER_BATCH if tokens_per_batch is None else tokens_per_batch
    if limit < 2:
        raise UsageError(f"tokens_per_batch = {limit} is too few; expected 2 or more, e.g. {TOKENS_PER_BATCH}")
    return min(size, limit)


def reaching_back(first: int, fresh: int, end: int, size: int) -> list[Window]:
    """Windows of a text from `first` to `end` whose tokens from `fresh` on count, `size` new ones in each; the last
    one reaches back, not beyond `first`, to be whole."""
    return [
        Window(max(first, min(start + size, end) - size), start, min(start + size, end))
        for start in range(fresh, end, size)
    ]


def _all_windows(dataset: TokenDataset, size: int, *, every_token: bool) -> tuple[list[Window], NDArray[np.bool_]]:
    """All windows in the order of the data set, and bool [N]: the last token of its document."""
    last = np.zeros(len(dataset), dtype=np.bool_)
    windows: list[Window] = []
    for first, end in zip(*dataset.document_bounds(), strict=True):
        last[end - 1] = True
        windows += _of_document(int(first), int(end), size, every_token=every_token)
    return windows, last


def _of_document(first: int, end: int, size: int, *, every_token: bool) -> list[Window]:
    if end - first <= size:
        return [Window(first, first, end)] if every_token else reaching_back(first, first, end - 1, size)
    windows = reaching_back(first, first, end - 1, size)
    return [*windows, Window(end - size, end - 1, end)] if every_token else windows


def _layout(windows: Sequence[Window]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Index and keep of a WindowBatch."""
    starts, fresh, ends = (np.array(column)[:, None] for column in zip(*windows, strict=True))
    index = starts + np.arange((ends - starts).max())
    keep = (index >= fresh) & (index < ends)
    return np.minimum(index, ends - 1), keep
