"""Figures of change: over training, and between two traces."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from moe_core.figures.figure import Figure
from moe_core.figures.labels import rows, spread
from moe_core.figures.layout import MAX_NUMBERED_BARS, ROW_AXIS, bars_height, layered, step_axis
from moe_core.figures.measures import bar_mark, interval_mark
from moe_core.figures.palette import HEAT, LAYER_SHADES, NEUTRAL, expert_colour
from moe_core.routing.measures.comparison import diff_verdict
from moe_core.routing.measures.movers import movers_verdict, whose_tokens
from moe_core.routing.measures.saturation import saturation_verdict
from moe_core.words import percent, points

MAX_MOVERS = 20
MAX_LAYER_LINES = 8
_NAME_CHARACTERS = 24
"""More layers than this: the earliest and the latest to settle are coloured, the others grey."""


def saturation_figure(saturation: pd.DataFrame) -> Figure:
    """Since when is the routing what it is? Frame of metrics.saturation (OLMoE, 2409.02060, eq. 5)."""
    frame = saturation.sort_values(["layer", "step"], ignore_index=True)
    layers = sorted({int(layer) for layer in frame["layer"]})
    shown = layers if len(layers) <= MAX_LAYER_LINES else _extremes(frame)
    data = frame.assign(
        highlighted=frame["layer"].isin(shown),
        sentence=[
            f"Step {row.step:,}, layer {row.layer}: {percent(row.top_k)} of a token's final experts are chosen already "
            f"({percent(row.chance_top_k)} by chance), the first one for {percent(row.first)} of tokens."
            for row in rows(frame)
        ],
    )
    x = step_axis(names=[f"layer {layer}" for layer in shown])
    y = alt.Y("top_k:Q", title="experts shared with the last step", axis=alt.Axis(format=".0%"),
              scale=alt.Scale(domain=[0, 1.02], nice=False))  # fmt: skip
    colour = alt.Color("layer:Q", scale=alt.Scale(range=list(LAYER_SHADES)), legend=None)
    base = alt.Chart(data).encode(x=x, y=y, detail=alt.Detail("layer:N"), tooltip=alt.Tooltip("sentence:N"))
    grey = base.transform_filter("!datum.highlighted").mark_line(strokeWidth=1, opacity=0.35, color=NEUTRAL)
    lines = base.transform_filter("datum.highlighted").mark_line(
        strokeWidth=2, point=alt.OverlayMarkDef(size=24, filled=True)
    )
    chance = data.groupby("step")["chance_top_k"].mean().reset_index()
    rule = alt.Chart(chance).mark_line(strokeDash=[5, 4], color=HEAT, strokeWidth=1.5).encode(
        x=alt.X("step:Q"), y=alt.Y("chance_top_k:Q")
    )  # fmt: skip
    layers_of_chart = [grey, lines.encode(color=colour), rule, _layer_names(data, shown, chance)]
    return Figure(
        "saturation", "When the routing settled", "Since when do tokens go to the experts they go to now?",
        saturation_verdict(saturation), layered(layers_of_chart, data, 320), saturation,
    )  # fmt: skip


def diff_figure(diff: pd.DataFrame) -> Figure:
    """How many tokens choose other experts? Frame of metrics.routing_diff."""
    data = diff.assign(
        sentence=[_difference(row) for row in rows(diff)],
        label=[percent(value) for value in diff["flip_rate"]],
        end=diff[["flip_rate", "high"]].max(axis=1),
    )
    base = alt.Chart(data).encode(
        y=alt.Y("layer:O", title="MoE layer", axis=ROW_AXIS), tooltip=alt.Tooltip("sentence:N")
    )
    end = _scale_to(data["end"])
    x = alt.X("flip_rate:Q", title="part of tokens that choose other experts; tick: another first expert",
              # Of two precisions few tokens differ: whole percents would repeat.
              axis=alt.Axis(format=".0%" if end >= 0.06 else ".1%", tickCount=6),
              scale=alt.Scale(domain=[0, end], nice=False))  # fmt: skip
    layers = [
        bar_mark(base).encode(x=x),
        interval_mark(base).encode(x=alt.X("low:Q"), x2=alt.X2("high:Q")),
        base.mark_tick(thickness=3, opacity=1, size=26 if len(data) <= MAX_NUMBERED_BARS else 9, color=HEAT).encode(
            x=alt.X("first_flip_rate:Q")
        ),
    ]
    if len(data) <= MAX_NUMBERED_BARS:
        layers.append(
            base.mark_text(align="left", dx=5, fontSize=11).encode(x=alt.X("end:Q"), text=alt.Text("label:N"))
        )
    return Figure(
        "routing_diff", "Changed choices by layer", "How many tokens choose other experts?",
        diff_verdict(diff), layered(layers, data, bars_height(len(data))), diff,
    )  # fmt: skip


def movers_figure(movers: pd.DataFrame) -> Figure:
    """Which experts changed their share most? Frame of metrics.routing_movers; the MAX_MOVERS largest are drawn.

    A hollow circle is the share in A, a filled one in B, in the expert's colour; an uncertain change is faded.
    """
    top = movers.reindex(movers["change"].abs().sort_values(ascending=False, kind="stable").index).head(MAX_MOVERS)
    data = top.assign(
        name=[f"layer {row.layer}, expert {row.expert}{_of_domain(row.domain, movers)}" for row in rows(top)],
        colour=[expert_colour(int(expert)) for expert in top["expert"]],
        uncertain=top["uncertain"].astype(bool),
        label=[points(change) for change in top["change"]],
        end=top[["share_a", "share_b"]].max(axis=1),
        sentence=[
            f"Expert {row.expert} of layer {row.layer} takes {percent(row.share_b)} of {whose_tokens(row._asdict())} "
            f"in B, {percent(row.share_a)} in A: {points(row.change)}"
            + (f", 95 % interval {points(row.low)} to {points(row.high)}" if row.low == row.low else "")
            + (": uncertain." if row.uncertain else ".")
            for row in rows(top)
        ],
    )
    base = alt.Chart(data).encode(
        y=alt.Y("name:N", title=None, sort=list(data["name"]), axis=alt.Axis(labelLimit=260)),
        opacity=alt.condition("datum.uncertain", alt.value(0.4), alt.value(1.0)),
        tooltip=alt.Tooltip("sentence:N"),
    )
    x = alt.X("share_a:Q", title="part of the tokens that choose the expert: ○ in A, ● in B",
              axis=alt.Axis(format=".0%"), scale=alt.Scale(domain=[0, _scale_to(data["end"])], nice=False))  # fmt: skip
    colour = alt.Color("colour:N", scale=None)
    layers = [
        base.mark_rule(strokeWidth=2).encode(x=x, x2=alt.X2("share_b:Q"), color=colour),
        base.mark_point(size=70, strokeWidth=2).encode(x=alt.X("share_a:Q"), color=colour),
        base.mark_point(size=70, filled=True).encode(x=alt.X("share_b:Q"), color=colour),
        base.mark_text(align="left", dx=10, fontSize=11).encode(x=alt.X("end:Q"), text=alt.Text("label:N")),
    ]
    return Figure(
        "movers", "Experts that moved", "Which experts take more or fewer tokens than before?",
        movers_verdict(movers), layered(layers, data, bars_height(len(data))), movers,
    )  # fmt: skip


def _difference(row: Any) -> str:
    interval = "" if pd.isna(row.low) else f" (95 % interval {percent(row.low)} to {percent(row.high)})"
    return (
        f"Layer {row.layer}: {percent(row.flip_rate)} of {row.tokens:,} tokens choose other experts{interval}, "
        f"{percent(row.first_flip_rate)} another first one; {percent(row.jaccard)} of the experts are shared."
    )


def _extremes(frame: pd.DataFrame) -> list[int]:
    """The layers whose routing was the most and the least like the last one, over all steps."""
    mean = frame.groupby("layer")["top_k"].mean()
    return sorted({int(str(mean.idxmin())), int(str(mean.idxmax()))})


def _layer_names(data: pd.DataFrame, shown: list[int], chance: pd.DataFrame) -> alt.Chart:
    """Names at the last step but one, where the lines are still apart: at the last all are 1."""
    steps = sorted(data["step"].unique())
    at = steps[-2] if len(steps) > 1 else steps[-1]
    ends = data[(data["step"] == at) & data["layer"].isin(shown)]
    names = pd.DataFrame(
        {
            "step": float(steps[-1]),
            "top_k": [*spread([float(value) for value in ends["top_k"]], 0.05), float(chance["chance_top_k"].iloc[-1])],
            "name": [*(f"layer {layer}" for layer in ends["layer"]), "chance"],
        }
    )
    mark = alt.Chart(names).mark_text(align="left", dx=7, fontSize=11)
    labels: alt.Chart = mark.encode(x=alt.X("step:Q"), y=alt.Y("top_k:Q"), text=alt.Text("name:N"))
    return labels


def _scale_to(ends: pd.Series[float]) -> float:
    """End of a scale of shares, with room for the number behind the longest bar."""
    most = float(ends.max()) if len(ends) else 0.0
    return max(most * 1.12, 0.01) if most == most else 1.0


def _of_domain(domain: str, movers: pd.DataFrame) -> str:
    """Which text a share is of; nothing where all are of one kind."""
    return f": {_short_name(domain)}" if movers["domain"].nunique() > 1 else ""


def _short_name(name: str) -> str:
    return name if len(name) <= _NAME_CHARACTERS else name[: _NAME_CHARACTERS - 1] + "…"
