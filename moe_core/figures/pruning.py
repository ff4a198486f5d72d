"""Figures of what a model loses when experts are taken out, and when tokens get more or fewer of them."""

from __future__ import annotations

import altair as alt
import pandas as pd

from moe_core.figures.figure import Figure, slug
from moe_core.figures.labels import rows, spread
from moe_core.figures.layout import AUTOSIZE, BOLD_CHARACTER, NAME_GAP, WIDTH
from moe_core.figures.palette import BAR, HEAT, NEUTRAL, SPLIT_COLOURS
from moe_core.routing.measures.pruning import (
    BY,
    TOLERANCE_NATS,
    PruningCurves,
    pruning_verdict,
    top_k_verdict,
)
from moe_core.words import number, signed

HEIGHT = 320
_COLOURS = {
    "reap": SPLIT_COLOURS["validation"],
    "load": SPLIT_COLOURS["train"],
    "effect": SPLIT_COLOURS["unseen"],
    "random": NEUTRAL,
}
_DASHES = {"reap": [1, 0], "load": [7, 3], "effect": [1, 0], "random": [2, 2]}
_Y = "change of loss (nats per token)"


def pruning_figure(curves: PruningCurves, domain: str = "all") -> Figure:
    """How much does the model lose when experts go, in which order? A line for each order, its 95 % interval as a bar
    at each point; a grey band from the best to the worst of the random orders."""
    frame = curves.frame()
    data = frame[frame["domain"] == domain].reset_index(drop=True)
    data = data.assign(sentence=[_point_words(row, curves) for row in rows(data)])
    names = {by: BY[by] for by in curves.criteria}
    room = max(len(name) for name in names.values()) * BOLD_CHARACTER + NAME_GAP
    most = float(data["removed"].max())
    counts = sorted(set(data["removed"]))
    x = alt.X(
        "removed:Q", title=f"experts taken out of each layer of {curves.num_experts}",
        scale=alt.Scale(domain=[min(counts), max(most, min(counts) + 1)], nice=False,
                        range=[NAME_GAP, alt.ExprRef(f"width - {room:.0f}")]),
        axis=alt.Axis(values=counts, format="d"),
    )  # fmt: skip
    ys = alt.Scale(nice=True, zero=True)
    y = alt.Y("delta_nats:Q", title=_Y, scale=ys)
    colour = alt.Color("by:N", scale=alt.Scale(domain=list(names), range=[_COLOURS[by] for by in names]), legend=None)
    dash = alt.StrokeDash("by:N", scale=alt.Scale(domain=list(names), range=[_DASHES[by] for by in names]), legend=None)
    base = alt.Chart(data)
    layers = [
        base.mark_rule(strokeWidth=1.2, opacity=0.7).encode(x=x, y=alt.Y("low:Q"), y2=alt.Y2("high:Q"), color=colour),
        base.mark_line(strokeWidth=2.2).encode(x=x, y=y, color=colour, strokeDash=dash),
        base.mark_point(filled=True, size=46, opacity=1).encode(
            x=x, y=y, color=colour, tooltip=alt.Tooltip("sentence:N")
        ),
    ]
    if "random" in names:
        band = base.transform_filter("datum.by == 'random'").mark_area(color=NEUTRAL, opacity=0.18)
        layers.insert(0, band.encode(x=x, y=alt.Y("lowest:Q", scale=ys, title=_Y), y2=alt.Y2("highest:Q")))
    ends = data[data["removed"] == most]
    gap = max(float(data["delta_nats"].max() - data["delta_nats"].min()), 1e-6) / 16
    labels = pd.DataFrame(
        {
            "removed": most,
            "delta_nats": spread([float(value) for value in ends["delta_nats"]], gap),
            "by": list(ends["by"]),
            "name": [names[by] for by in ends["by"]],
        }
    )
    text = alt.Chart(labels).mark_text(align="left", dx=8, fontWeight="bold", fontSize=11)
    layers.append(text.encode(x=x, y=y, text=alt.Text("name:N"), color=colour))
    layers += _lines()
    chart = alt.LayerChart(layer=layers, data=data, autosize=AUTOSIZE, width=WIDTH, height=HEIGHT)
    return Figure(
        f"pruning{_in_file_name(domain)}", f"Loss by experts taken out{_in_title(domain)}",
        "How many experts can go, and in which order?",
        pruning_verdict(curves), chart, frame,
    )  # fmt: skip


def top_k_figure(curves: PruningCurves, domain: str = "all") -> Figure:
    """What do fewer or more experts for each token do to the loss? A point for each number, with its interval."""
    frame = curves.top_k_frame()
    data = frame[frame["domain"] == domain].reset_index(drop=True)
    data = data.assign(
        is_own=data["top_k"] == curves.top_k,
        sentence=[
            f"With {row.top_k} experts for each token the loss changes by {signed(row.delta_nats)} nats per token"
            f"{_interval(row)}."
            for row in rows(data)
        ],
    )
    x = alt.X(
        "top_k:O", title=f"experts for each token (the model as it is: {curves.top_k})", axis=alt.Axis(labelAngle=0)
    )
    y = alt.Y("delta_nats:Q", title=_Y, scale=alt.Scale(nice=True, zero=True))
    base = alt.Chart(data)
    layers = [
        base.mark_rule(strokeWidth=1.5, color=NEUTRAL).encode(x=x, y=alt.Y("low:Q"), y2=alt.Y2("high:Q")),
        base.mark_line(strokeWidth=1.5, color=BAR).encode(x=x, y=y),
        base.mark_point(filled=True, size=70, opacity=1).encode(
            x=x,
            y=y,
            color=alt.condition("datum.is_own", alt.value(HEAT), alt.value(BAR)),
            tooltip=alt.Tooltip("sentence:N"),
        ),
        alt.Chart(pd.DataFrame({"delta_nats": [0.0]}))
        .mark_rule(strokeDash=[5, 4], color=NEUTRAL)
        .encode(y=alt.Y("delta_nats:Q")),
    ]
    chart = alt.LayerChart(layer=layers, data=data, autosize=AUTOSIZE, width=WIDTH, height=HEIGHT - 60)
    return Figure(
        f"top_k{_in_file_name(domain)}", f"Loss by experts for each token{_in_title(domain)}",
        "What do fewer or more experts for each token change?",
        top_k_verdict(curves), chart, frame,
    )  # fmt: skip


def _in_file_name(domain: str) -> str:
    return "" if domain == "all" else f"_{slug(domain)}"


def _in_title(domain: str) -> str:
    return "" if domain == "all" else f": {domain} text"


def _lines() -> list[alt.Chart]:
    """No change, and the change that someone who prunes puts up with."""
    marks = pd.DataFrame({"delta_nats": [0.0, TOLERANCE_NATS], "what": ["as it is", f"+{number(TOLERANCE_NATS)} nats"]})
    return [
        alt.Chart(marks)
        .mark_rule(strokeDash=[5, 4], color=HEAT)
        .encode(y=alt.Y("delta_nats:Q"), tooltip=alt.Tooltip("what:N"))
    ]


def _point_words(row: object, curves: PruningCurves) -> str:
    by, removed = str(getattr(row, "by", "")), int(getattr(row, "removed", 0))
    text = (
        f"Taken out {BY[by]}, {curves.num_experts - removed} of {curves.num_experts} experts left in each layer: the "
        f"loss changes by {signed(float(getattr(row, 'delta_nats', 0.0)))} nats per token{_interval(row)}"
    )
    if by == "random":
        low, high = float(getattr(row, "lowest", 0.0)), float(getattr(row, "highest", 0.0))
        text += f"; mean of {curves.orders} orders, {signed(low)} to {signed(high)}"
    return f"{text}."


def _interval(row: object) -> str:
    low, high = float(getattr(row, "low", 0.0)), float(getattr(row, "high", 0.0))
    return f", 95 % interval {signed(low)} to {signed(high)}" if low == low else ", of one source only"
