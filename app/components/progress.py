"""A progress bar with the time left, for anything that may take over two seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import streamlit as st

from app.components.page import plain
from moe_core.words import duration

# Redrawing more often costs more than it tells.
_REDRAW_SECONDS = 0.1


def stage_text(label: str, seconds_left: float | None) -> str:
    """What stands over a bar: "Checking, 12 s left"."""
    return label if seconds_left is None else f"{label}, {duration(seconds_left)} left"


@contextmanager
def progress_bar(label: str, *, stages: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Yield progress(stage, done, total), which moves a bar; the bar goes when the block ends.

    `stages`: each stage is named and has a time left of its own, for work whose stages differ.
    """
    place = st.empty()
    place.progress(0.0, text=f"{plain(label)} ...")  # loading a model comes before the first progress
    began, present = time.monotonic(), ""
    drawn_at = 0.0

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal drawn_at, began, present
        now = time.monotonic()
        is_new = stages and stage != present
        if is_new:
            began, present = now, stage
        if total <= 0 or (now - drawn_at < _REDRAW_SECONDS and not is_new):
            return
        drawn_at = now
        share = min(1.0, done / total)
        left = (now - began) * (1 - share) / share if share > 0 else None
        place.progress(share, text=plain(stage_text(f"{label}: {stage}" if stages else label, left)))

    try:
        yield progress
    finally:
        place.empty()
