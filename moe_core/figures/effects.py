"""The effect of one change of the model on the loss of each kind of text."""

from __future__ import annotations

from dataclasses import replace

import altair as alt
import pandas as pd

from moe_core.figures.figure import Figure
from moe_core.figures.labels import rows
from moe_core.figures.layout import bars_height, layered
from moe_core.figures.palette import HEAT, LIFT_COLOURS, NEUTRAL, expert_colour
from moe_core.routing.measures.causes import effects_verdict
from moe_core.words import signed, signed_two_digits


def domain_effects_figure(effects: pd.DataFrame, what: str) -> Figure:
    """Who loses, and how surely? Frame of evaluation's domain_effects, or one expert's rows of ablation_map.

    `what` says what was done, such as "without expert 5 of layer 2". Orange bars: the loss rises; purple: it falls; a
    bar whose 95 % interval holds 0 is faded.
    """
    data = effects.assign(
        uncertain=effects["uncertain"].astype(bool),
        colour=[LIFT_COLOURS[-1] if delta > 0 else LIFT_COLOURS[0] for delta in effects["delta_nats"]],
        label=[signed_two_digits(delta) for delta in effects["delta_nats"]],
        end=effects[["high", "delta_nats"]].max(axis=1).clip(lower=0.0),
        name=["all text" if domain == "all" else domain for domain in effects["domain"]],
        sentence=[_effect_words(row, what) for row in rows(effects)],
    )
    low = min(0.0, float(effects[["low", "delta_nats"]].min(axis=1).min()))
    high = max(0.0, float(data["end"].max()))
    room = max(high - low, 0.001) * 0.12
    scale = alt.Scale(domain=[low - (room if low < 0 else 0.0), high + room], nice=False)
    base = alt.Chart(data).encode(
        y=alt.Y("name:N", title="text", sort=list(data["name"]), axis=alt.Axis(labelLimit=160)),
        tooltip=alt.Tooltip("sentence:N"),
    )
    x = alt.X("delta_nats:Q", title="change of loss (nats per token)", scale=scale, axis=alt.Axis(tickCount=7))
    bars = base.mark_bar(height=alt.RelativeBandSize(0.55)).encode(
        x=x,
        color=alt.Color("colour:N", scale=None),
        opacity=alt.condition("datum.uncertain", alt.value(0.35), alt.value(0.9)),
    )
    layers = [
        bars,
        base.mark_rule(strokeWidth=1.5, color=NEUTRAL).encode(x=alt.X("low:Q"), x2=alt.X2("high:Q")),
        base.mark_text(align="left", dx=6, fontSize=11).encode(x=alt.X("end:Q"), text=alt.Text("label:N")),
        alt.Chart(pd.DataFrame({"delta_nats": [0.0]}))
        .mark_rule(strokeDash=[5, 4], color=HEAT)
        .encode(x=alt.X("delta_nats:Q")),
    ]
    return Figure(
        "domain_effects", "Change of loss by kind of text", "On which text does the loss change, and how surely?",
        effects_verdict(effects, what), layered(layers, data, bars_height(len(data))), effects,
    )  # fmt: skip


def with_outline(figure: Figure, layer: int, expert: int) -> Figure:
    """A map of layers x experts with a frame around one expert's cell; as it is where that is not drawn."""
    data: pd.DataFrame = figure.chart.data  # type: ignore[assignment]
    own = data[(data["layer"] == layer) & (data["expert"] == expert)]
    if own.empty:
        return figure
    cell = alt.Chart(own[["layer", "column"]]).encode(x=alt.X("column:O"), y=alt.Y("layer:O"))
    frame = cell.mark_rect(fill=None, stroke=expert_colour(0), strokeWidth=3, tooltip=None)
    chart = figure.chart.copy(deep=False)
    chart.layer = [*figure.chart.layer, frame]
    return replace(figure, chart=chart)


def _effect_words(row: object, what: str) -> str:
    delta, low, high = (float(getattr(row, name)) for name in ("delta_nats", "low", "high"))
    domain, tokens = getattr(row, "domain", "all"), int(getattr(row, "tokens", 0))
    text = f"{what[:1].upper()}{what[1:]}, the loss on {domain} text changes by {signed(delta)} nats per token"
    if low == low:
        text += f", 95 % interval {signed(low)} to {signed(high)}"
    return f"{text} ({tokens:,} tokens)" + (": uncertain." if getattr(row, "uncertain", False) else ".")
