"""Figure of one expert's flow: which experts its tokens come from, and which they go to."""

from __future__ import annotations

import altair as alt
import pandas as pd

from moe_core.figures.figure import Figure
from moe_core.figures.labels import rows
from moe_core.figures.layout import bars_height, layered, percent_axis
from moe_core.figures.maps import CELL
from moe_core.figures.palette import HEAT, expert_colour
from moe_core.routing.measures.expert_flow import NAMED_STREAMS, Direction, expert_flow_verdict
from moe_core.words import number, percent


def expert_flow_figure(frame: pd.DataFrame, layer: int, expert: int, direction: Direction) -> Figure:
    """Where do the tokens of one expert come from, or go to? Frame of expert_flow, with a row or more.

    A bar is a share of its tokens, the line across what independence of the layers gives; what is uncertain is faded.
    The NAMED_STREAMS furthest beyond independence are drawn. Bars carry the selection CELL, as cells of maps do.
    """
    other, way = int(frame["layer"].iloc[0]), {"from": "come from", "to": "go to"}[direction]
    drawn = frame.head(NAMED_STREAMS)
    data = drawn.assign(
        colour=[expert_colour(int(number_)) for number_ in drawn["expert"]],
        sentence=[
            f"{percent(row.share)} of the tokens of expert {expert} (layer {layer}) {way} expert {row.expert} (layer "
            f"{other}), {number(row.lift)} times the {percent(row.expected)} that independence gives ({row.tokens:,} "
            f"choices){': uncertain' if row.uncertain else ''}."
            for row in rows(drawn)
        ],
    )
    note = f"; {len(drawn)} of {len(frame)}, those most beyond it" if len(frame) > len(drawn) else ""
    most = float(data[["share", "expected"]].max().max())
    x = alt.X(
        "share:Q", title=f"share of its tokens; line: by independence{note}",
        axis=percent_axis(most), scale=alt.Scale(domain=[0, max(most * 1.05, 0.001)], nice=False),
    )  # fmt: skip
    base = alt.Chart(data).encode(
        y=alt.Y("expert:O", title=f"expert of layer {other}", sort=[int(one) for one in drawn["expert"]]),
        tooltip=alt.Tooltip("sentence:N"),
    )
    bars = base.mark_bar(height=alt.RelativeBandSize(0.7)).encode(
        x=x,
        color=alt.Color("colour:N", scale=None),
        opacity=alt.condition("datum.uncertain", alt.value(0.25), alt.value(0.75)),
    )
    bars = bars.add_params(alt.selection_point(name=CELL, fields=["layer", "expert"]))
    line = base.mark_tick(thickness=2, color=HEAT, size=22).encode(x=alt.X("expected:Q"))
    return Figure(
        f"expert_flow_{direction}_layer_{layer}_expert_{expert}",
        f"Where the tokens of expert {expert} of layer {layer} {way}",
        f"Which experts do its tokens {way}?", expert_flow_verdict(frame, direction),
        layered([bars, line], data, bars_height(len(data))), frame,
    )  # fmt: skip
