"""Where a piece of text lies in the text of a trace, over the borders of its tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_core.data.tokenizer import bytes_of_readable
from moe_core.routing.measures.concordance import reading_places
from moe_core.routing.trace.trace import RoutingTrace

_APART = b"\xff"
"""Between two texts: no UTF-8 has it, so nothing that is looked for goes on in the next text."""
_SPACES = bytes.maketrans(b"\n\r\t", b"   ")


@dataclass(frozen=True, eq=False)
class SearchableText:
    """All texts of a trace one after the other, in small letters, any white space as a space."""

    data: bytes
    starts: npt.NDArray[np.int64]
    """[T] where each token begins in `data`, in reading order."""
    texts: npt.NDArray[np.int64]
    """[T] number of the text without a gap that it lies in, in reading order."""
    ranks: npt.NDArray[np.int64]
    """[T] each token of the trace's place in reading order."""

    def near(self, tokens: npt.NDArray[np.int64], wanted: str, window: int) -> npt.NDArray[np.bool_]:
        """bool [N]: whether `wanted` lies within `window` tokens on either side of each of these tokens of the trace,
        or over it. Capitals are not told from small letters. All are where nothing is wanted."""
        needle = as_searched(wanted.encode("utf-8", "replace"))
        if not needle:
            return np.ones(len(tokens), np.bool_)
        first, last = self._hits(needle)
        rank = self.ranks[tokens]
        own_text = self.texts[rank]
        low = np.maximum(rank - window, np.searchsorted(self.texts, own_text, "left"))
        high = np.minimum(rank + window, np.searchsorted(self.texts, own_text, "right") - 1)
        # The first hit that begins at `low` or later must end by `high`: hits ascend in both.
        at = np.searchsorted(first, low, "left")
        found: npt.NDArray[np.bool_] = at < len(first)
        found[found] = last[at[found]] <= high[found]
        return found

    def _hits(self, needle: bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """First and last token of each place where it lies, in reading order."""
        places = []
        at = self.data.find(needle)
        while at >= 0:
            places.append(at)
            at = self.data.find(needle, at + 1)
        begins = np.array(places, np.int64)
        first = np.searchsorted(self.starts, begins, "right") - 1
        last = np.searchsorted(self.starts, begins + len(needle) - 1, "right") - 1
        return first, last


def searchable_text(trace: RoutingTrace) -> SearchableText:
    """The text of the trace's tokens; of one without a vocabulary, their numbers as token_text writes them."""
    places = reading_places(trace)
    order = np.argsort(places, kind="stable")
    begins = np.diff(places[order], prepend=places[order[0]] - 2 if len(order) else 0) != 1
    known: dict[str, bytes] = {}
    parts, starts, length = [], np.zeros(len(order), np.int64), 0
    for rank, (token, is_begin) in enumerate(zip(order.tolist(), begins.tolist(), strict=True)):
        text = trace.token_text(token)
        if (part := known.get(text)) is None:
            part = known[text] = as_searched(bytes_of_readable(text))
        part = _APART + part if is_begin else part
        starts[rank] = length
        parts.append(part)
        length += len(part)
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return SearchableText(b"".join(parts), starts, np.cumsum(begins), ranks)


def as_searched(data: bytes) -> bytes:
    """The bytes of a text or of a part of one, in small letters, any white space as a space."""
    try:
        data = data.decode().lower().encode()
    except UnicodeDecodeError:  # a part of a character
        data = data.lower()
    return data.translate(_SPACES)
