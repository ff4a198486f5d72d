"""Where labels stand, and the rows that they are written from. Numbers and sentences are made in moe_core.words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import pandas as pd


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Label heights nearest to `values` (least squares), in the same order of size, at least `gap` between neighbours.

    Labels that would touch form a group around the mean of its places; others stay where they are.
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    groups: list[tuple[float, int]] = []  # sum and number of heights with the gaps taken out, never falling
    for rank, i in enumerate(order):
        total, size = values[i] - rank * gap, 1
        while groups and groups[-1][0] / groups[-1][1] >= total / size:
            before, count = groups.pop()
            total, size = total + before, size + count
        groups.append((total, size))
    level = [total / size for total, size in groups for _ in range(size)]
    placed = list(values)
    for rank, i in enumerate(order):
        placed[i] = level[rank] + rank * gap
    return placed


def rows(frame: pd.DataFrame) -> Iterable[Any]:
    """The rows of a tidy table, one attribute per column."""
    return cast(Iterable[Any], frame.itertuples())
