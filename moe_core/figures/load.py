"""Figures of the load: how evenly the router shares the work among the experts, and how sure it is of each choice."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from moe_core.errors import UsageError
from moe_core.figures.palette import (
    BAR,
    EXPERT_COLOURS,
    LIFT_COLOURS,
    LIFT_LIMIT,
    LIFT_STOPS,
    LIFT_WHITE_ABOVE,
    LIFT_WHITE_BELOW,
    NEUTRAL,
    expert_colour,
)
from moe_core.figures.words import rows, spread
from moe_core.routing.verdicts import number, percent

WIDTH = 640
AUTOSIZE = alt.AutoSizeParams(type="fit", contains="padding")
"""Width and height hold the axes and legends too: Streamlit makes just that much room on the page."""
AXIS_ROOM = 76
"""Height of the horizontal axis with its title."""
LABEL_ROOM = 0.13
"""Part of the steps' range kept free on the right for the names of lines."""
MAX_COLUMNS = 64
"""More experts than this are ordered by load and drawn in groups: a map of thousands of cells cannot be read."""
COLUMN_AXIS = alt.Axis(labelAngle=0, labelOverlap="parity")
MAX_LINES = len(EXPERT_COLOURS)
"""More experts than this: the most unusual few are coloured and labelled, the others are grey."""
HIGHLIGHTED_LINES = 6
_LABELLED_CELLS = 200


def expert_load_map(load: pd.DataFrame) -> alt.LayerChart:
    """Layers x experts: load of each expert as a multiple of its even share (lift), on the log scale of all lift maps.

    `load` has the columns of metrics.expert_load: layer, expert, tokens, share. With more than MAX_COLUMNS experts a
    column is a group of experts ranked by their load in that layer, most loaded first.
    """
    experts = int(load["expert"].max()) + 1
    frame = load.assign(lift=load["share"] * experts)
    if experts > MAX_COLUMNS:
        frame = _ranked_groups(frame)
        axis = f"experts of each layer ranked by load, in {frame['column'].nunique()} groups, most loaded first"
    else:
        frame, axis = frame.assign(column=frame["expert"].astype(int)), "expert"
        frame["sentence"] = [
            f"Layer {row.layer}, expert {row.expert}: {percent(row.share)} of the layer's choices, "
            f"{number(row.lift)} times its even share ({row.tokens:,} choices)."
            for row in rows(frame)
        ]
    return lift_map(frame, x=alt.X("column:O", title=axis, axis=COLUMN_AXIS), y=alt.Y("layer:O", title="MoE layer"))


def lift_map(frame: pd.DataFrame, *, x: alt.X, y: alt.Y) -> alt.LayerChart:
    """Heat map of `frame["lift"]` around 1, one cell a row; `frame["sentence"]` is its tooltip.

    Where `frame` has a true `uncertain` the cell is faded. Few cells carry their number.
    """
    lift = frame["lift"].astype(float)
    shown = lift.clip(1 / LIFT_LIMIT, LIFT_LIMIT)
    uncertain = frame["uncertain"].astype(bool) if "uncertain" in frame else pd.Series(False, index=frame.index)
    data = frame.assign(
        shown=shown,
        label=[_cell(value) for value in lift],
        uncertain=uncertain,
        on_dark=~shown.between(2**LIFT_WHITE_BELOW, 2**LIFT_WHITE_ABOVE) & ~uncertain & lift.notna(),
    )
    base = alt.Chart(data).encode(x=x, y=y)
    cells = base.mark_rect(stroke=NEUTRAL, strokeOpacity=0.25, strokeWidth=1).encode(
        color=alt.Color("shown:Q", title="times its even share", scale=lift_scale(), legend=_lift_legend()),
        opacity=alt.condition("datum.uncertain", alt.value(0.3), alt.value(1.0)),
        tooltip="sentence:N",
    )
    rows, columns = _distinct(frame, y), _distinct(frame, x)
    height = min(max(rows * 36, 100), 620) + AXIS_ROOM
    layers: list[alt.Chart] = [cells]
    if len(frame) <= _LABELLED_CELLS and columns <= 20:
        # One layer of text in the theme's colour, one in white on the darkest cells: both pages stay readable.
        text = base.mark_text(fontSize=11, tooltip=None).encode(text="label:N")
        plain = text.transform_filter("!datum.on_dark").encode(
            opacity=alt.condition("datum.uncertain", alt.value(0.55), alt.value(1.0))
        )
        layers += [plain, text.transform_filter("datum.on_dark").encode(color=alt.value("#ffffff"))]
    return alt.LayerChart(layer=layers, data=data, autosize=AUTOSIZE, width=WIDTH, height=height)


def lift_scale() -> alt.Scale:
    """The one colour scale of all lift maps: logarithmic, see-through at 1, clamped at LIFT_LIMIT."""
    return alt.Scale(type="log", base=2, domain=list(LIFT_STOPS), range=list(LIFT_COLOURS), clamp=True)


def expert_load_over_time(loads: pd.DataFrame, layer: int) -> alt.LayerChart:
    """Share of one layer's choices that each expert takes, by training step, with the even share 1/E.

    `loads` has columns step, layer, expert, share (see run_figures.loads_over_time). Up to MAX_LINES experts each have
    their colour; of more, the few furthest from even at the last step do.
    """
    frame = loads[loads["layer"] == layer]
    if frame.empty:
        raise UsageError(f"no load of layer {layer} is recorded; expected one of {sorted(set(loads['layer']))}")
    experts = int(frame["expert"].max()) + 1
    even = 1 / experts
    last = frame[frame["step"] == frame["step"].max()].set_index("expert")["share"]
    chosen = list(last.index) if experts <= MAX_LINES else list(
        (last - even).abs().sort_values(ascending=False).index[:HIGHLIGHTED_LINES]
    )  # fmt: skip
    data = frame.assign(
        sentence=[
            f"Step {row.step:,}: expert {row.expert} takes {percent(row.share)} of layer {layer}'s choices, "
            f"{number(row.share * experts)} times its even share."
            for row in rows(frame)
        ],
        highlighted=frame["expert"].isin(chosen),
    )
    colours = alt.Color("expert:N", scale=_expert_scale(chosen), legend=None)
    x = step_axis(frame["step"])
    y = alt.Y("share:Q", title=f"share of choices (even: {percent(even)})", axis=alt.Axis(format=".0%"))
    base = alt.Chart(data).encode(x=x, y=y, detail="expert:N", tooltip="sentence:N")
    grey = base.transform_filter("!datum.highlighted").mark_line(strokeWidth=1, opacity=0.35, color=NEUTRAL)
    lines = base.transform_filter("datum.highlighted").mark_line(
        strokeWidth=2, point=alt.OverlayMarkDef(size=18, filled=True)
    ).encode(color=colours)  # fmt: skip
    rule = alt.Chart(pd.DataFrame({"share": [even]})).mark_rule(strokeDash=[5, 4], color=NEUTRAL).encode(y="share:Q")
    labels = _line_end_labels(last[chosen], int(frame["step"].max()), frame["share"])
    named = labels.encode(color=colours)
    return alt.LayerChart(layer=[grey, lines, rule, named], data=data, autosize=AUTOSIZE, width=WIDTH, height=320)


def step_axis(steps: pd.Series[Any]) -> alt.X:
    """Training steps, with room on the right for the names of the lines, inside the plot."""
    first, last = (float(steps.min()), float(steps.max())) if len(steps) else (0.0, 1.0)
    room = max(last - first, 1.0) * (1 + LABEL_ROOM)
    scale = alt.Scale(domain=[first, first + room], nice=False)
    # No tick stands behind the names: there are no steps there.
    axis = alt.Axis(format=",d", labelExpr=f"datum.value <= {last} ? datum.label : ''", tickCount=8)
    return alt.X("step:Q", title="training step", scale=scale, axis=axis)


def router_entropy_by_layer(entropy: pd.DataFrame) -> alt.LayerChart:
    """How undecided each layer's router is, 0 = certain .. 1 = uniform over all experts.

    `entropy` has the columns of metrics.router_entropy: layer, router_entropy, confidence, margin, basis.
    """
    basis = {"logits": "over all experts", "scores": "over the chosen experts only"}
    data = entropy.assign(
        sentence=[
            f"Layer {row.layer}: entropy {percent(row.router_entropy)} of the maximum ({basis[row.basis]}); the first "
            f"expert has {percent(row.confidence)} of the probability, {percent(row.margin)} more than the second."
            for row in rows(entropy)
        ],
        label=[number(value) for value in entropy["router_entropy"]],
    )
    base = alt.Chart(data).encode(
        y=alt.Y("layer:O", title="MoE layer"),
        x=alt.X(
            "router_entropy:Q",
            title="router entropy (0 = certain, 1 = all experts alike)",
            scale=alt.Scale(domain=[0, 1.08], nice=False),  # room for the number of a bar that reaches 1
            axis=alt.Axis(values=[0, 0.2, 0.4, 0.6, 0.8, 1]),
        ),
        tooltip="sentence:N",
    )
    bars = base.mark_bar(height=alt.RelativeBandSize(0.62), color=BAR)
    labels = base.mark_text(align="left", dx=5, fontSize=11).encode(text="label:N")
    uniform = alt.Chart(pd.DataFrame({"router_entropy": [1.0]}))
    rule = uniform.mark_rule(strokeDash=[5, 4], color=NEUTRAL).encode(x="router_entropy:Q")
    return alt.LayerChart(
        layer=[bars, rule, labels], data=data, autosize=AUTOSIZE, width=WIDTH, height=bars_height(len(data))
    )


def bars_height(rows: int) -> int:
    """Height of a chart with one horizontal bar per row."""
    return min(max(rows * 32, 90), 720) + AXIS_ROOM


def _ranked_groups(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean lift of MAX_COLUMNS groups of experts, by rank of load within the layer (first = most loaded)."""
    experts = int(frame["expert"].max()) + 1
    ranked = frame.sort_values(["layer", "share"], ascending=[True, False], kind="stable")
    rank = ranked.groupby("layer").cumcount()
    ranked = ranked.assign(group=rank * MAX_COLUMNS // experts, rank=rank + 1)
    grouped = ranked.groupby(["layer", "group"], as_index=False).agg(
        lift=("lift", "mean"), share=("share", "sum"), tokens=("tokens", "sum"),
        first=("rank", "min"), last=("rank", "max"), most=("expert", "first"),
    )  # fmt: skip
    grouped["column"] = grouped["group"]
    grouped["sentence"] = [
        f"Layer {row.layer}: the experts ranked {row.first} to {row.last} by load, led by expert {row.most}, take "
        f"{percent(row.share)} of the choices, {number(row.lift)} times their even share."
        for row in rows(grouped)
    ]
    return grouped


def _cell(lift: float) -> str:
    if lift != lift:  # NaN
        return ""
    return number(lift) if lift == 0 or lift >= 0.01 else "<0.01"


def _distinct(frame: pd.DataFrame, channel: alt.X | alt.Y) -> int:
    return int(frame[str(channel["shorthand"]).split(":")[0]].nunique())


def _lift_legend() -> alt.Legend:
    low, high = f"≤ {1 / LIFT_LIMIT:g}", f"≥ {LIFT_LIMIT:g}"
    return alt.Legend(
        values=list(LIFT_STOPS),
        labelExpr=f"datum.value <= {1 / LIFT_LIMIT} ? '{low}' : datum.value >= {LIFT_LIMIT} ? '{high}' : datum.value",
        gradientLength=120,
        direction="vertical",
        titleLimit=200,
        gradientStrokeColor=NEUTRAL,
    )


def _expert_scale(experts: list[int]) -> alt.Scale:
    return alt.Scale(domain=[int(expert) for expert in experts], range=[expert_colour(int(e)) for e in experts])


def _line_end_labels(last: pd.Series[float], step: int, shares: pd.Series[float]) -> alt.Chart:
    gap = float(max(shares.max() - min(shares.min(), 0.0), 1e-9)) / 20
    heights = spread([float(share) for share in last], gap)
    ends = pd.DataFrame({"step": step, "share": heights, "expert": last.index.astype(int)})
    ends["name"] = [f"expert {expert}" for expert in ends["expert"]]
    mark = alt.Chart(ends).mark_text(align="left", dx=7, fontSize=11, fontWeight="bold", tooltip=None)
    labels: alt.Chart = mark.encode(x="step:Q", y="share:Q", text="name:N")
    return labels
