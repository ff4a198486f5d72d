"""How the cost of an analysis grows with what is analysed."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from moe_core.figures.figure import Figure
from moe_core.figures.layout import AUTOSIZE, WIDTH
from moe_core.figures.palette import DOMAIN_COLOURS, NEUTRAL


def growth_figure(points: pd.DataFrame, exponents: dict[tuple[str, str], float]) -> Figure:
    """Cost against size, both as multiples of the smallest and on logarithmic scales, beside what linear would be.

    `points`: axis ("tokens", ...), kind ("counts", "nulls"), size, seconds. `exponents`: b of cost ~ size^b by axis and
    kind; the verdict names the largest.
    """
    smallest = points.groupby(["axis", "kind"])[["size", "seconds"]].transform("first")
    frame = points.assign(
        times_size=points["size"] / smallest["size"], times_cost=points["seconds"] / smallest["seconds"]
    )
    axes = list(dict.fromkeys(frame["axis"]))
    (axis, kind), worst = max(exponents.items(), key=lambda item: item[1])
    colour = alt.Color(
        "axis:N", title="grows", scale=alt.Scale(domain=axes, range=list(DOMAIN_COLOURS[: len(axes)])), sort=None
    )
    x = alt.X("times_size:Q", title="times the smallest size", scale=alt.Scale(type="log"))
    y = alt.Y("times_cost:Q", title="times its processor time", scale=alt.Scale(type="log"))
    lines = (
        alt.Chart(frame)
        .mark_line(point=True)
        .encode(x=x, y=y, color=colour, strokeDash=alt.StrokeDash("kind:N", title="made of"))
    )
    ends = np.array([1.0, float(frame["times_size"].max())])
    linear = (
        alt.Chart(pd.DataFrame({"times_size": ends, "times_cost": ends}))
        .mark_line(color=NEUTRAL, strokeDash=[2, 4])
        .encode(x=x, y=y)
    )
    return Figure(
        name="growth",
        title="Cost against size",
        question="Does the cost of an analysis grow faster than what is analysed?",
        verdict=f"Steepest: {kind} with {axis}, as size to the power of {worst:.2f} (dotted: linear).",
        chart=alt.LayerChart(layer=[linear, lines], autosize=AUTOSIZE, width=WIDTH, height=360),
        frame=frame,
    )
