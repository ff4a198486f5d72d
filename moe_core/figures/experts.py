"""Figures of single experts, and of the slots that no expert took."""

from __future__ import annotations

import altair as alt
import pandas as pd

from moe_core.errors import UsageError
from moe_core.figures.figure import Figure
from moe_core.figures.labels import rows
from moe_core.figures.layout import COLUMN_AXIS, ROW_AXIS, bars_height, layered
from moe_core.figures.load import expert_load_over_time
from moe_core.figures.maps import CELL, share_map
from moe_core.figures.palette import HEAT, NEUTRAL, domain_colour, expert_colour
from moe_core.routing.measures.domains import domain_cell
from moe_core.routing.measures.experts import expert_sentence
from moe_core.words import number, percent, sentence, two_digits

MAX_NAMED_BARS = 20
"""Bars of half a page that have room for the number of their expert."""


def expert_domains_figure(cells: pd.DataFrame, layer: int, expert: int) -> Figure:
    """Which kind of text does one expert prefer? Frame of baselines.domain_cells."""
    domains = list(dict.fromkeys(cells["domain"]))
    frame = _rows_of_expert(cells, layer, expert, "domains")
    data = frame.assign(
        colour=[domain_colour(name, domains) for name in frame["domain"]],
        label=[f"{two_digits(lift)}×" for lift in frame["lift"]],
        end=frame[["lift", "lift_high"]].max(axis=1),
        uncertain=frame["uncertain"].astype(bool),
        sentence=[sentence(domain_cell(row._asdict())) for row in rows(frame)],
    )
    most = float(data["end"].max())
    base = alt.Chart(data).encode(
        y=alt.Y("domain:N", title=None, sort=domains, axis=alt.Axis(labelLimit=160)), tooltip=alt.Tooltip("sentence:N")
    )
    x = alt.X("lift:Q", title="times its even share (1 = as by chance)",
              scale=alt.Scale(domain=[0, max(1.5, most * 1.15) if most == most else 1.5], nice=False))  # fmt: skip
    even = alt.Chart(pd.DataFrame({"lift": [1.0]})).mark_rule(strokeDash=[5, 4], color=HEAT).encode(x=alt.X("lift:Q"))
    layers = [
        base.mark_bar(height=alt.RelativeBandSize(0.62)).encode(
            x=x,
            color=alt.Color("colour:N", scale=None),
            opacity=alt.condition("datum.uncertain", alt.value(0.25), alt.value(0.6)),
        ),
        base.mark_rule(strokeWidth=3, strokeCap="round").encode(
            x=alt.X("lift_low:Q"), x2=alt.X2("lift_high:Q"), color=alt.Color("colour:N", scale=None)
        ),
        even,
        base.mark_text(align="left", dx=5, fontSize=11).encode(x=alt.X("end:Q"), text=alt.Text("label:N")),
    ]
    return Figure(
        f"expert_domains_layer_{layer}_expert_{expert}", f"Text of expert {expert} in layer {layer}",
        "Which kind of text does this expert prefer?",
        expert_sentence(layer, expert, cells=cells),
        layered(layers, data, bars_height(len(data))), frame,
    )  # fmt: skip


def layer_load_figure(load: pd.DataFrame, layer: int, expert: int) -> Figure:
    """Where does one expert stand among those of its layer? Frame of metrics.expert_load; the busiest stand first."""
    frame = _rows_of_expert(load, layer, expert, "load")
    own = load[load["layer"] == layer].sort_values("share", ascending=False, kind="stable")
    experts = len(own)
    data = own.assign(
        lift=own["share"] * experts,
        chosen=own["expert"] == expert,
        sentence=[
            f"Expert {row.expert} takes {percent(row.share)} of the choices of layer {layer}, "
            f"{number(row.share * experts)} times its even share ({row.tokens:,} choices)."
            for row in rows(own)
        ],
    )
    share, place = float(frame["share"].iloc[0]), 1 + list(own["expert"]).index(expert)
    few = experts <= MAX_NAMED_BARS
    most = float(data["lift"].max())
    scale = alt.Scale(domain=[0, max(1.5, most * 1.1) if most == most else 1.5], nice=False)
    names = alt.Axis(labels=few, ticks=few, labelAngle=0)
    base = alt.Chart(data).encode(
        x=alt.X("expert:O", sort=list(own["expert"]), title=f"experts of layer {layer}, the busiest first", axis=names),
        y=alt.Y("lift:Q", title="times its even share", scale=scale),
        tooltip=alt.Tooltip("sentence:N"),
    )
    even = alt.Chart(pd.DataFrame({"lift": [1.0]})).mark_rule(strokeDash=[5, 4], color=HEAT).encode(y=alt.Y("lift:Q"))
    colour = alt.condition("datum.chosen", alt.value(expert_colour(expert)), alt.value(NEUTRAL))
    opacity = alt.condition("datum.chosen", alt.value(1.0), alt.value(0.45))
    bars = base.mark_bar().encode(color=colour, opacity=opacity)
    bars = bars.add_params(alt.selection_point(name=CELL, fields=["layer", "expert"]))
    # Of many experts a bar is a line of a point: the number above says which it is.
    number_above = base.transform_filter("datum.chosen").mark_text(dy=-7, fontSize=11, fontWeight="bold")
    name = number_above.encode(text=alt.Text("expert:O"), color=colour)
    verdict = (
        f"Expert {expert} is number {place} of {experts} in layer {layer} by load: {percent(share)} of the choices, "
        f"{number(share * experts)} times its even share."
        if share == share
        else f"Nothing was routed in layer {layer}."
    )
    return Figure(
        f"layer_load_layer_{layer}_expert_{expert}", f"Load of expert {expert} among those of layer {layer}",
        "How much of the work does this expert do?", verdict,
        layered([bars, even, name], data, 220), own.reset_index(drop=True),
    )  # fmt: skip


def expert_history_figure(loads: pd.DataFrame, layer: int, expert: int) -> Figure:
    """How has one expert's load changed while training? Frame of run_figures.loads_over_time; the layer's other experts
    stand behind in grey."""
    frame = _rows_of_expert(loads, layer, expert, "recorded load").sort_values("step", ignore_index=True)
    even = 1 / loads.loc[loads["layer"] == layer, "expert"].nunique()
    first, last = frame.iloc[0], frame.iloc[-1]
    verdict = (
        f"Expert {expert} of layer {layer} took {percent(float(first['share']))} of the choices at step "
        f"{first['step']:,.0f} and takes {percent(float(last['share']))} at step {last['step']:,.0f}, "
        f"{number(float(last['share']) / even)} times its even share."
    )
    return Figure(
        f"expert_history_layer_{layer}_expert_{expert}", f"Load of expert {expert} in layer {layer} over time",
        "Since when does this expert do the work it does?", verdict, expert_load_over_time(loads, layer, expert), frame,
    )  # fmt: skip


def dropped_figure(dropped: pd.DataFrame) -> Figure:
    """Where in a document are slots dropped? Frame of metrics.dropped_by_position."""
    data = dropped.assign(
        value=dropped["dropped_fraction"],
        sentence=[
            f"Layer {row.layer}, positions {row.position_low:,.0f} to {row.position_high:,.0f}: "
            f"{percent(row.dropped_fraction)} of {row.slots:,} slots dropped ({row.dropped:,})."
            for row in rows(dropped)
        ],
    )
    worst = dropped.iloc[int(dropped["dropped_fraction"].fillna(0).argmax())]
    share = float(dropped["dropped"].sum()) / max(float(dropped["slots"].sum()), 1.0)
    verdict = "No slot was dropped: every token got all its experts."
    if dropped["dropped"].sum():
        verdict = (
            f"{percent(share)} of the slots were dropped, most in layer {int(worst['layer'])} at positions "
            f"{worst['position_low']:,.0f} to {worst['position_high']:,.0f}: "
            f"{percent(float(worst['dropped_fraction']))}."
        )
    most = float(dropped["dropped_fraction"].max())
    chart = share_map(
        data,
        x=alt.X("position_low:O", title="position in the document (first of each stretch)", axis=COLUMN_AXIS),
        y=alt.Y("layer:O", title="MoE layer", axis=ROW_AXIS),
        title="part of slots dropped",
        limit=next((limit for limit in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if most <= limit), 1.0),
    )
    return Figure(
        "dropped", "Dropped slots by position", "Where in a document do tokens lose an expert?", verdict, chart, dropped
    )


def _rows_of_expert(frame: pd.DataFrame, layer: int, expert: int, what: str) -> pd.DataFrame:
    own = frame[(frame["layer"] == layer) & (frame["expert"] == expert)].reset_index(drop=True)
    if own.empty:
        raise UsageError(
            f"expert {expert} of layer {layer} has no {what}; layers are "
            f"{sorted({int(value) for value in frame['layer']})}, experts 0 to {int(frame['expert'].max())}"
            if len(frame)
            else f"expert {expert} of layer {layer} has no {what}; the table is empty"
        )
    return own
