"""Small helpers of the figures. Numbers and sentences come from moe_core.routing.verdicts, as on every page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, cast

import pandas as pd


def sentence(text: str) -> str:
    """`text` with a capital first letter and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Label heights near `values`, in the same order of size, with at least `gap` between neighbours."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    placed = list(values)
    for below, above in pairwise(order):
        placed[above] = max(placed[above], placed[below] + gap)
    # Pushing only upwards leaves the group too high: take back half of the last one's push.
    shift = max((placed[i] - values[i] for i in order), default=0.0) / 2
    return [height - shift for height in placed]


def rows(frame: pd.DataFrame) -> Iterable[Any]:
    """The rows of a tidy table, one attribute per column."""
    return cast(Iterable[Any], frame.itertuples())
