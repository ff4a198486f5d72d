"""Which request each token of SGLang's forward passes belongs to, as far as positions tell: passes name no request.

A pass that extends texts begins one at position 0, or where a cached prefix ends; it continues a prompt that the pass
before it cut. A pass that decodes has a token of each running request, in the order in which the requests came; some
have ended in between. A token is a request's where its position is the next one of that request and of no other that
the order allows. Where two are possible it begins a text of its own, and `uncertain` counts it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import numpy.typing as npt

Requests = npt.NDArray[np.int64]


class ForwardMode(IntEnum):
    """The modes in which a pass reads known tokens; others try out drafts, or have none (forward_batch_info.py)."""

    EXTEND = 1
    DECODE = 2
    MIXED = 3
    IDLE = 4


class RunningRequests:
    """Follows the requests of one rank from pass to pass; they are numbered from `first` on."""

    def __init__(self, first: int) -> None:
        self.count = first
        """The number of the next new request."""
        self.uncertain = 0
        """Tokens that begin a text because more than one request may be theirs."""
        self._running: list[int] = []
        self._next: dict[int, int] = {}
        """Position of the next token of each."""
        self._cut: int | None = None
        """The last request of the last pass that extended: its prompt may go on."""

    def extend(self, positions: Requests, lengths: Sequence[int]) -> Requests:
        """[N] request of each token of a pass that reads `lengths` tokens of each of several prompts."""
        found: list[int] = []
        for start, end in _spans(lengths):
            place = int(positions[start])
            goes_on = not found and place > 0 and self._cut is not None and self._next[self._cut] == place
            found.append(self._cut if goes_on and self._cut is not None else self._new())
            self._next[found[-1]] = int(positions[end - 1]) + 1
        if found:
            self._cut = found[-1]
            self._running = [request for request in self._running if request not in found] + found
        return np.repeat(found, [length for length in lengths if length]).astype(np.int64)

    def decode(self, positions: Requests) -> Requests:
        """[N] request of each token of a pass that reads one token of each running request; -1 = padding, at 0."""
        tokens = np.flatnonzero(positions > 0)
        places = positions[tokens].tolist()
        found = [request if request is not None else self._new() for request in self._owners(places)]
        self._next = {request: place + 1 for request, place in zip(found, places, strict=True)} | self._waiting(found)
        self._running = found
        requests = np.full(len(positions), -1, dtype=np.int64)
        requests[tokens] = found
        return requests

    def mixed(self, positions: Requests, lengths: Sequence[int]) -> Requests:
        """[N] request of each token of a pass that extends prompts and then decodes one token of each other request."""
        decoded = 0
        ends = np.cumsum(lengths)
        while decoded < len(lengths) - 1 and lengths[-1 - decoded] == 1 and positions[ends[-1 - decoded] - 1] > 0:
            decoded += 1
        border = len(positions) - decoded
        # The requests that go on stand behind the new ones from then on.
        last = self.decode(positions[border:])
        kept = self._running
        self._running = []
        first = self.extend(positions[:border], lengths[: len(lengths) - decoded])
        self._running += kept
        return np.concatenate([first, last])

    def _new(self) -> int:
        self.count += 1
        return self.count - 1

    def _waiting(self, found: list[int]) -> dict[int, int]:
        """A prompt that was cut is not among the running ones until it is read to its end."""
        if self._cut in found:
            self._cut = None
        return {} if self._cut is None else {self._cut: self._next[self._cut]}

    def _owners(self, places: list[int]) -> list[int | None]:
        """The running request of each token where it is certain; None where it is not, or there is none."""
        expected = [self._next[request] for request in self._running]
        first, last = _in_order(expected, places), _in_order(expected[::-1], places[::-1])
        if first is None or last is None:
            return self._owners_without_order(expected, places)
        size = len(expected) - 1
        found: list[int | None] = []
        for left, right in zip(first, reversed(last), strict=True):
            certain = left == size - right
            self.uncertain += not certain
            found.append(self._running[left] if certain else None)
        return found

    def _owners_without_order(self, expected: list[int], places: list[int]) -> list[int | None]:
        """By position alone: requests came or went that no pass shows, as where a recording begins."""
        times_expected, times = Counter(expected), Counter(places)
        by_place = dict(zip(expected, self._running, strict=True))
        found: list[int | None] = []
        for place in places:
            certain = times_expected[place] == times[place] == 1
            self.uncertain += not certain and place in by_place
            found.append(by_place[place] if certain else None)
        return found


def _in_order(expected: list[int], places: list[int]) -> list[int] | None:
    """For each place the first item of `expected` that equals it, in the same order; None where they do not fit."""
    found: list[int] = []
    at = 0
    for place in places:
        while at < len(expected) and expected[at] != place:
            at += 1
        if at == len(expected):
            return None
        found.append(at)
        at += 1
    return found


def _spans(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Where each prompt that has tokens begins and ends."""
    ends = np.cumsum(lengths).tolist()
    return [(end - length, end) for end, length in zip(ends, lengths, strict=True) if length]
