"""Sizes and axes that all figures share."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

import altair as alt
import pandas as pd

WIDTH = 640
AUTOSIZE = alt.AutoSizeParams(type="fit", contains="padding")
"""Width and height hold the axes and legends too: Streamlit makes just that much room on the page."""
AXIS_ROOM = 76
"""Height of the horizontal axis with its title."""
TITLE_CHARACTERS, TITLE_LINE = 44, 15
"""Characters of a title that a page of 420 points has room for, and the height of each further line."""
BOLD_CHARACTER, NAME_GAP = 6.6, 12
"""Points that a character of a line's name takes, and what lies between the line and its name."""
MAX_COLUMNS = 64
"""More experts than this are ordered and drawn in groups, or the most telling ones alone: a map of thousands of cells
cannot be read."""
COLUMN_AXIS = alt.Axis(labelAngle=0, labelOverlap="parity")
ROW_AXIS = alt.Axis(labelOverlap="greedy")
DOMAIN_AXIS = alt.Axis(labelLimit=alt.ExprRef("clamp(width / 4, 60, 160)"))
"""Rows of domains, whose names come from outside: on a phone a long one would leave no room for the map."""
MAX_NUMBERED_BARS = 40
"""More bars than this stand too close for a number on each."""


def window_around(layers: Sequence[int], layer: int, most: int) -> list[int]:
    """At most `most` neighbouring ones of `layers`, with `layer` in the middle where that can be."""
    first = max(0, min(list(layers).index(layer) - most // 2, len(layers) - most))
    return list(layers[first : first + most])


def bars_height(rows: int) -> int:
    """Height of a chart with one horizontal bar per row."""
    return min(max(rows * 32, 90), 720) + AXIS_ROOM


def map_height(rows: int) -> int:
    """Height of a heat map."""
    return min(max(rows * 36, 100), 620) + AXIS_ROOM


def room_for(names: Iterable[str]) -> alt.ExprRef:
    """Where the horizontal axis ends, so that the longest of the `names` at the ends of lines fits inside the plot.

    The room is in points, as the names are: a part of the width would cut them on a phone and in a report. It grows by
    four characters at once: another digit does not make another chart, which a page would have to draw anew.
    """
    longest = -(-max((len(name) for name in names), default=0) // 4) * 4
    return alt.ExprRef(f"width - {longest * BOLD_CHARACTER + NAME_GAP:.0f}")


def step_axis(title: str = "training step", names: Iterable[str] = ()) -> alt.X:
    """Steps from the first to the last there is, with room for `names` (see room_for)."""
    scale = alt.Scale(nice=False, zero=False, range=[0, room_for(names)])
    axis = alt.Axis(format=",d", tickCount=8, tickMinStep=1, labelOverlap="greedy")
    return alt.X("step:Q", title=title, scale=scale, axis=axis)


def layered(layers: list[alt.Chart], data: pd.DataFrame, height: int) -> alt.LayerChart:
    """The layers over one table, in the house's size and as high as the lines of their longest title take more."""
    lines = max(_wrap_title(layer) for layer in layers)
    height += (lines - 1) * TITLE_LINE
    return alt.LayerChart(layer=layers, data=data, autosize=AUTOSIZE, width=WIDTH, height=height)


def _wrap_title(layer: alt.Chart) -> int:
    """Put a long title of the horizontal axis on several lines, and count them.

    A chart holds its axes (AUTOSIZE): on a phone a title wider than the page would leave no room for the plot.
    """
    x = layer.encoding.x
    title = alt.Undefined if x is alt.Undefined else x["title"]
    if not isinstance(title, str):
        return len(title) if isinstance(title, list) else 1
    wrapped = textwrap.wrap(title, TITLE_CHARACTERS)
    if len(wrapped) > 1:
        x["title"] = wrapped
    return max(1, len(wrapped))


def percent_axis(most: float) -> alt.Axis:
    """Shares as percent, with as many digits as a scale that ends at `most` needs to tell its ticks apart."""
    return alt.Axis(format=".0%" if most >= 0.05 else ".1%" if most >= 0.005 else ".2%", tickCount=6)
