"""Timing on noisy machines: the sides take turns within every round, and only ratios within a round are compared."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd

LOW, HIGH = 0.1, 0.9
"""Quantiles that the spread of paired ratios is told by."""


@dataclass(frozen=True)
class Spread:
    """A median and the range that the middle 80 % of the rounds lie in."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Timings:
    """Seconds of one call, one row a round, one column a side."""

    seconds: pd.DataFrame

    def median(self, side: str) -> float:
        """Median seconds of one call."""
        return float(self.seconds[side].median())

    def spread(self, side: str) -> Spread:
        """Seconds of one call over the rounds."""
        return _spread(self.seconds[side])

    def times_faster(self, side: str, than: str) -> Spread:
        """Seconds of `than` divided by those of `side`, round by round; above 1 = `side` is the faster."""
        return _spread(self.seconds[than] / self.seconds[side])


def interleave(
    sides: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    min_seconds: float = 0.02,
    on_round: Callable[[int], None] | None = None,
) -> Timings:
    """Time every side `rounds` times, in turn: forwards in even rounds, backwards in odd ones.

    Each side is first called `warmup` times. A side quicker than `min_seconds` is called as often in a row as it takes
    to fill them, and the mean of those calls counts as one round. Python's garbage collector rests meanwhile.
    """
    repeats: dict[str, int] = {}
    with _without_garbage_collection():
        for name, call in sides.items():
            for _ in range(warmup):
                call()
            repeats[name] = max(1, math.ceil(min_seconds / max(_seconds(call, 1), 1e-7)))
        found: list[dict[str, float]] = []
        for number in range(rounds):
            order = list(sides) if number % 2 == 0 else list(reversed(list(sides)))
            found.append({name: _seconds(sides[name], repeats[name]) for name in order})
            if on_round is not None:
                on_round(number + 1)
    return Timings(pd.DataFrame(found, columns=list(sides)))


def _seconds(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _spread(values: pd.Series[float]) -> Spread:
    median, low, high = (float(np.quantile(values, q)) for q in (0.5, LOW, HIGH))
    return Spread(median, low, high)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
