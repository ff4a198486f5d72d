"""Figures of the load: how evenly the router shares the work among the experts, and how sure it is of each choice."""

from __future__ import annotations

from collections.abc import Iterable

import altair as alt
import pandas as pd

from moe_core.errors import UsageError
from moe_core.figures.expert_order import ALL, MapView, away_from_one, in_columns
from moe_core.figures.figure import Figure
from moe_core.figures.labels import rows, spread
from moe_core.figures.layout import (
    ROW_AXIS,
    bars_height,
    layered,
    percent_axis,
    step_axis,
)
from moe_core.figures.maps import lift_map
from moe_core.figures.palette import BAR, EXPERT_COLOURS, NEUTRAL, expert_colour
from moe_core.routing.measures.health import routing_health, undecided_layers
from moe_core.words import number, percent, sentence, two_digits

MAX_LINES = len(EXPERT_COLOURS)
"""More experts than this: the most unusual few are coloured and labelled, the others are grey."""
HIGHLIGHTED_LINES = 6
MAX_STEPS = 64
"""Of counts of more steps, neighbouring ones are drawn together (RoutingCounts.joined)."""


def expert_load_map(
    load: pd.DataFrame,
    why_faded: str = "too little text to tell",
    view: MapView = ALL,
    places: pd.DataFrame | None = None,
) -> alt.LayerChart:
    """Layers x experts: load of each expert as a multiple of its even share (lift), on the log scale of all lift maps.

    `load` has the columns of metrics.expert_load: layer, expert, tokens, share. Where it has a true `uncertain` the
    cell is faded, and `why_faded` says why. `view` and `places`: see expert_order.in_columns.
    """
    experts = int(load["expert"].max()) + 1
    frame = load.assign(lift=load["share"] * experts, uncertain=load.get("uncertain", False))
    frame["telling"] = away_from_one(frame["lift"])
    frame["sentence"] = [
        f"Layer {row.layer}, expert {row.expert}: {percent(row.share)} of the layer's choices, "
        f"{number(row.lift)} times its even share ({row.tokens:,} choices)."
        for row in rows(frame)
    ]
    frame, x = in_columns(frame, places, view, telling="telling", drawn="the one furthest from its even share")
    if frame["uncertain"].any():
        x["title"] += f"; faded: {why_faded}"
        little = frame["uncertain"].map({True: f" {sentence(why_faded)}", False: ""})
        frame["sentence"] = frame["sentence"] + little
    data = frame[["layer", "expert", "column", "lift", "uncertain", "sentence"]]
    return lift_map(data, x=x, y=alt.Y("layer:O", title="MoE layer", axis=ROW_AXIS))


def expert_load_over_time(loads: pd.DataFrame, layer: int, expert: int | None = None) -> alt.LayerChart:
    """Share of one layer's choices that each expert takes, by training step, with the even share 1/E.

    `loads` has columns step, layer, expert, share (see run_figures.loads_over_time). Up to MAX_LINES experts each have
    their colour; of more, the few furthest from even at the last step do. With `expert`, that one alone does.
    """
    frame = loads[loads["layer"] == layer]
    if frame.empty:
        raise UsageError(f"no load of layer {layer} is recorded; expected one of {sorted(set(loads['layer']))}")
    experts = int(frame["expert"].max()) + 1
    even = 1 / experts
    last = frame[frame["step"] == frame["step"].max()].set_index("expert")["share"]
    chosen = list(last.index)
    if expert is not None:
        chosen = [expert]
    elif experts > MAX_LINES:
        chosen = list((last - even).abs().sort_values(ascending=False).index[:HIGHLIGHTED_LINES])
    data = frame.assign(
        sentence=[
            f"Step {row.step:,}: expert {row.expert} takes {percent(row.share)} of layer {layer}'s choices, "
            f"{number(row.share * experts)} times its even share."
            for row in rows(frame)
        ],
        highlighted=frame["expert"].isin(chosen),
    )
    # Of all experts, also those that are grey now: at a live run's next reading others are the furthest from even.
    colours = alt.Color("expert:N", scale=_expert_scale(range(experts)), legend=None)
    labels = _line_end_labels(last[chosen], int(frame["step"].max()), frame["share"])
    x = step_axis("step", [f"expert {experts - 1}"])  # of training, or what an engine counted apart
    y = alt.Y(
        "share:Q", title=f"share of choices (even: {percent(even)})", axis=percent_axis(float(frame["share"].max()))
    )
    base = alt.Chart(data).encode(x=x, y=y, detail=alt.Detail("expert:N"), tooltip=alt.Tooltip("sentence:N"))
    grey = base.transform_filter("!datum.highlighted").mark_line(strokeWidth=1, opacity=0.35, color=NEUTRAL)
    lines = base.transform_filter("datum.highlighted").mark_line(
        strokeWidth=2, point=alt.OverlayMarkDef(size=18, filled=True)
    ).encode(color=colours)  # fmt: skip
    rule = (
        alt.Chart(pd.DataFrame({"share": [even]}))
        .mark_rule(strokeDash=[5, 4], color=NEUTRAL)
        .encode(y=alt.Y("share:Q"))
    )
    named = labels.encode(color=colours)
    return layered([grey, lines, rule, named], data, 320)


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
        label=[two_digits(value) for value in entropy["router_entropy"]],
    )
    base = alt.Chart(data).encode(
        y=alt.Y("layer:O", title="MoE layer"),
        x=alt.X(
            "router_entropy:Q",
            title="router entropy (0 = certain, 1 = all experts alike)",
            scale=alt.Scale(domain=[0, 1.08], nice=False),  # room for the number of a bar that reaches 1
            axis=alt.Axis(values=[0, 0.2, 0.4, 0.6, 0.8, 1]),
        ),
        tooltip=alt.Tooltip("sentence:N"),
    )
    bars = base.mark_bar(height=alt.RelativeBandSize(0.62), color=BAR)
    labels = base.mark_text(align="left", dx=5, fontSize=11).encode(text=alt.Text("label:N"))
    uniform = alt.Chart(pd.DataFrame({"router_entropy": [1.0]}))
    rule = uniform.mark_rule(strokeDash=[5, 4], color=NEUTRAL).encode(x=alt.X("router_entropy:Q"))
    return layered([bars, rule, labels], data, bars_height(len(data)))


def load_map_figure(
    load: pd.DataFrame, balance: pd.DataFrame, view: MapView = ALL, places: pd.DataFrame | None = None
) -> Figure:
    """Is the work shared evenly? Frames of metrics.expert_load and metrics.load_balance. Layers of which the text is
    too little to tell are faded. `view` and `places`: see expert_order.in_columns."""
    uncertain = load["layer"].isin(balance["layer"][undecided_layers(balance)])
    why_faded = "too little text to tell" if (balance["varies_by"] != "").all() else "as counted, nothing says how sure"
    return Figure(
        "expert_load_map", "Load of every expert", "Is the work shared evenly among the experts?",
        routing_health(balance), expert_load_map(load.assign(uncertain=uncertain), why_faded, view, places), load,
    )  # fmt: skip


def entropy_figure(entropy: pd.DataFrame) -> Figure:
    """How sure is the router? Frame of metrics.router_entropy."""
    low, high = (percent(float(value)) for value in (entropy["router_entropy"].min(), entropy["router_entropy"].max()))
    size = f"is {low} of the maximum" if low == high else f"is {low} to {high} of the maximum"
    if (entropy["basis"] == "logits").all():
        verdict = f"Router entropy {size}, where all experts are alike."
    else:
        verdict = (
            f"Router entropy {size}, counted over the chosen experts only, as the others' logits were not kept: do not "
            "compare it with an entropy over all experts."
        )
    return Figure(
        "router_entropy", "How sure the router is", "How decided is the router about each token?", verdict,
        router_entropy_by_layer(entropy), entropy,
    )  # fmt: skip


def load_over_time_figure(loads: pd.DataFrame, layer: int) -> Figure:
    """How has the load of one layer's experts changed? Frame of loads_over_time."""
    frame = loads[loads["layer"] == layer].reset_index(drop=True)
    last = frame[frame["step"] == frame["step"].max()]
    top = last.iloc[int(last["share"].argmax())]
    verdict = (
        f"At step {top['step']:,.0f} expert {top['expert']:.0f} of layer {layer} takes the most, "
        f"{percent(top['share'])} of the choices, {number(top['share'] * len(last))} times its even share."
    )
    return Figure(
        f"expert_load_over_time_layer_{layer}", f"Load of layer {layer}'s experts over time",
        "How does the sharing of work change while training?", verdict, expert_load_over_time(loads, layer), frame,
    )  # fmt: skip


def loads_over_time(records: pd.DataFrame) -> pd.DataFrame:
    """The run's metrics of kind load as one row per expert: step, layer, expert, share (0..1)."""
    columns = ["step", "layer", "expert", "share"]
    if records.empty:
        return pd.DataFrame({name: pd.Series(dtype=float) for name in columns})
    long = records[["step", "layer", "expert_load"]].explode("expert_load", ignore_index=True)
    long["expert"] = long.groupby(["step", "layer"]).cumcount()
    return long.rename(columns={"expert_load": "share"}).astype({"share": float})[columns]


def _expert_scale(experts: Iterable[int]) -> alt.Scale:
    return alt.Scale(domain=list(experts), range=[expert_colour(expert) for expert in experts])


def _line_end_labels(last: pd.Series[float], step: int, shares: pd.Series[float]) -> alt.Chart:
    gap = float(max(shares.max() - min(shares.min(), 0.0), 1e-9)) / 20
    heights = spread([float(share) for share in last], gap)
    ends = pd.DataFrame({"step": step, "share": heights, "expert": last.index.astype(int)})
    ends["name"] = [f"expert {expert}" for expert in ends["expert"]]
    mark = alt.Chart(ends).mark_text(align="left", dx=7, fontSize=11, fontWeight="bold", tooltip=None)
    labels: alt.Chart = mark.encode(x=alt.X("step:Q"), y=alt.Y("share:Q"), text=alt.Text("name:N"))
    return labels
