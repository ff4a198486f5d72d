"""One measure per layer as bars, each with its 95 % interval, as it was counted, and with what chance reaches."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from moe_core.figures.figure import Figure
from moe_core.figures.labels import rows
from moe_core.figures.layout import MAX_NUMBERED_BARS, ROW_AXIS, bars_height, layered
from moe_core.figures.palette import BAR, HEAT
from moe_core.routing.measures.measure import Measure
from moe_core.words import two_digits


def chance_figure(measure: Measure, test: pd.DataFrame) -> Figure:
    """A measure against its null, layer by layer: bars, verdict and numbers from the frame of its null.

    Raises ValueError for a measure whose record has no bars.
    """
    bars, verdict = measure.bars, measure.verdict
    if bars is None or verdict is None:
        raise ValueError(f"the measure {measure.name!r} has no bars in its record; expected one with a null a layer")
    chart = chance_bars(
        test,
        measure.value,
        title=bars.axis,
        sentences=[
            f"Layer {row.layer}: {row.verdict}." if row.null_p99 != row.null_p99 else bars.sentence(row)
            for row in rows(test)
        ],
        row_title=bars.row_title,
    )
    return Figure(bars.figure, bars.title, measure.question, verdict(test), chart, test)


def chance_bars(
    frame: pd.DataFrame, measure: str, *, title: str, sentences: Sequence[str], row_title: str = "MoE layer"
) -> alt.LayerChart:
    """`frame` has columns layer, `measure`, null_p99, estimate, low and high: one bar a layer from 0 to the estimate.

    The open mark is the measure as counted, the tick the 99th percentile of what chance gives it: a mark that does not
    reach beyond the tick is not distinguishable from chance. The bar is what is left without the bias of few tokens.
    """
    labels = [
        two_digits(known) if known == known or counted != counted else f"{two_digits(counted)} as counted"
        for known, counted in zip(frame["estimate"], frame[measure], strict=True)
    ]
    data = frame.assign(sentence=list(sentences), label=labels)
    intervals = bool(frame["low"].notna().any())
    data["end"] = data[["high", "estimate", measure, "null_p99"]].max(axis=1)  # where its number stands
    most = float(np.nanmax([0.0, *data["end"]]))
    room = 1.1 if data["estimate"].notna().all() else 1.25  # for "0.11 as counted"
    scale = alt.Scale(domain=[0, max(most * room, 0.01)], nice=False)
    base = alt.Chart(data).encode(y=alt.Y("layer:O", title=row_title, axis=ROW_AXIS), tooltip=alt.Tooltip("sentence:N"))
    axis = f"{title}; open mark: as counted, tick: its 99th percentile by chance"
    x = alt.X("estimate:Q", title=axis, scale=scale, axis=alt.Axis(tickCount=6))
    layers = [bar_mark(base, faint=intervals).encode(x=x)]
    if intervals:
        layers.append(interval_mark(base).encode(x=alt.X("low:Q"), x2=alt.X2("high:Q")))
    size = 26 if len(data) <= MAX_NUMBERED_BARS else 9
    layers.append(base.mark_point(size=3 * size, color=BAR, filled=False, opacity=1).encode(x=f"{measure}:Q"))
    layers.append(base.mark_tick(thickness=3, opacity=1, size=size, color=HEAT).encode(x=alt.X("null_p99:Q")))
    if len(data) <= MAX_NUMBERED_BARS:
        layers.append(
            base.mark_text(align="left", dx=8, fontSize=11).encode(x=alt.X("end:Q"), text=alt.Text("label:N"))
        )
    return layered(layers, data, bars_height(len(data)))


def bar_mark(base: alt.Chart, *, faint: bool = True) -> alt.Chart:
    """Bars of one measure; faint where an interval lies over them."""
    mark: alt.Chart = base.mark_bar(height=alt.RelativeBandSize(0.62), color=BAR, opacity=0.55 if faint else 1.0)
    return mark


def interval_mark(base: alt.Chart) -> alt.Chart:
    """A 95 % interval over a faint bar, in the bar's full colour."""
    mark: alt.Chart = base.mark_rule(strokeWidth=3, color=BAR, strokeCap="round")
    return mark
