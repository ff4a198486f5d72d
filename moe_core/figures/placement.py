"""Figures of which experts are hot and where they belong: coverage, caches, and the load of GPUs."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from moe_core.figures.figure import Figure
from moe_core.figures.labels import rows
from moe_core.figures.layout import AUTOSIZE, ROW_AXIS, WIDTH, bars_height, layered
from moe_core.figures.palette import BAR, HEAT, LAYER_SHADES, NEUTRAL
from moe_core.routing.measures.busiest import busiest_sentence, busiest_verdict
from moe_core.routing.measures.caches import cache_verdict
from moe_core.routing.measures.gpu_load import number2, placement_verdict

HEIGHT = 320
_PLAIN, _PLACED = "in order", "placed"


def coverage_figure(frame: pd.DataFrame, layer: int | None = None) -> Figure:
    """How much do the N busiest experts take? A line a layer, `layer` with its 95 % interval, and the even line."""
    data = _with_zero(frame.assign(sentence=[busiest_sentence(row) for row in rows(frame)]))
    data["value"] = data["share"].where(data["share"].notna(), data["counted"])
    even = _ends(frame, "even")
    title = "experts kept, the busiest first"
    x = alt.X("experts:Q", title=title, scale=alt.Scale(nice=False), axis=alt.Axis(format="d"))
    how = "share of the work, on other text" if frame["share"].notna().any() else "share of the work, as counted"
    y = alt.Y("value:Q", title=how, axis=alt.Axis(format=".0%"), scale=alt.Scale(domain=[0, 1]))
    layers = _lines_of_layers(data, layer, x, y)
    line = alt.Chart(even).mark_line(strokeDash=[5, 4], color=HEAT, strokeWidth=2)
    layers.append(line.encode(x=alt.X("experts:Q"), y=alt.Y("value:Q"), tooltip=alt.Tooltip("sentence:N")))
    return Figure(
        "expert_coverage", "Work of the busiest experts", "How many experts do most of the work?",
        busiest_verdict(frame), _chart(layers, data), frame,
    )  # fmt: skip


def cache_figure(frame: pd.DataFrame, experts: int | None = None) -> Figure:
    """How often has a cache of N experts what is needed? Means over layers: experts used last, in their order and in a
    random one, the busiest; and even choices."""
    names = {"lru": "used last", "static": "the busiest", "shuffled": "used last, random order", "even": "even choices"}
    means = frame.groupby("experts", as_index=False)[list(names)].mean()
    long = means.melt("experts", var_name="by", value_name="rate").dropna()
    long["kept"] = long["by"].map(names)
    long["sentence"] = [
        f"A cache of {row.experts}, {row.kept}: {row.rate:.0%} of the choices at hand, layers averaged."
        for row in rows(long)
    ]
    shown = [name for key, name in names.items() if key in set(long["by"])]
    colours = dict(zip(names.values(), (LAYER_SHADES[0], LAYER_SHADES[1], BAR, HEAT), strict=True))
    dashes = dict(zip(names.values(), ([1, 0], [8, 3], [2, 2], [5, 4]), strict=True))
    legend = alt.Legend(title=None, orient="top", columns=2, labelLimit=260)
    scale = alt.Scale(domain=[0, int(long["experts"].max())], nice=False)
    base = alt.Chart(long).encode(
        x=alt.X("experts:Q", title="experts in each layer's cache", scale=scale, axis=alt.Axis(format="d")),
        y=alt.Y("rate:Q", title="choices at hand", axis=alt.Axis(format=".0%"), scale=alt.Scale(domain=[0, 1])),
        color=alt.Color(
            "kept:N", scale=alt.Scale(domain=shown, range=[colours[name] for name in shown]), legend=legend
        ),
        strokeDash=alt.StrokeDash(
            "kept:N", scale=alt.Scale(domain=shown, range=[dashes[name] for name in shown]), legend=legend
        ),
        tooltip=alt.Tooltip("sentence:N"),
    )
    layers = [base.mark_line(strokeWidth=2)]
    if experts is not None:
        mark = alt.Chart(pd.DataFrame({"experts": [experts]})).mark_rule(color=NEUTRAL).encode(x=alt.X("experts:Q"))
        layers.append(mark)
    return Figure(
        "expert_cache", "Experts at hand in a cache", "How often is an expert at hand when only some are kept?",
        cache_verdict(frame, experts), _chart(layers, long), frame,
    )  # fmt: skip


def gpu_load_figure(frame: pd.DataFrame) -> Figure:
    """How even is the load of the GPUs, experts in order and placed? Two marks a layer, 1 is even."""
    own = frame[frame["layer"] >= 0]
    is_told = own["before"].notna().all()
    before, after = ("before", "after") if is_told else ("before_seen", "after_seen")
    data = own.assign(
        first=own[before],
        second=own[after],
        sentence=[
            f"Layer {row.layer}: the busiest GPU has {number2(getattr(row, before))} times the mean with experts in "
            f"order, {number2(getattr(row, after))} placed; {number2(row.after_seen)} on the text it is made of."
            for row in rows(own)
        ],
    )
    where = "text the placement has not seen" if is_told else "the text the placement is made of"
    title = f"load of the busiest GPU, times the mean, on {where}; open mark: experts in order, full mark: placed"
    most = float(np.nanmax([1.05, *data["first"], *data["second"]]))
    axis = alt.Axis(tickCount=6, format=".2~f")
    x = alt.X("second:Q", title=title, scale=alt.Scale(domain=[1, most * 1.02], nice=False), axis=axis)
    base = alt.Chart(data).encode(
        y=alt.Y("layer:O", title="MoE layer", axis=ROW_AXIS), tooltip=alt.Tooltip("sentence:N")
    )
    layers = [
        base.mark_rule(strokeWidth=2, color=NEUTRAL, opacity=0.6).encode(x=x, x2=alt.X2("first:Q")),
        base.mark_point(size=60, filled=False, color=HEAT, opacity=1).encode(x=alt.X("first:Q")),
        base.mark_point(size=60, filled=True, color=BAR, opacity=1).encode(x=alt.X("second:Q")),
    ]
    return Figure(
        "gpu_load", "Load of the busiest GPU", "Where should the experts be placed, and what does it bring?",
        placement_verdict(frame), layered(layers, data, bars_height(len(data))), frame,
    )  # fmt: skip


def _lines_of_layers(data: pd.DataFrame, layer: int | None, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """A faint line a layer; the chosen one, or of one alone that one, strong and with its interval."""
    numbers = sorted(set(data["layer"]))
    strong = numbers[-1] if layer is None or layer not in numbers else layer
    detail = alt.Detail("layer:N")
    chosen = alt.Chart(data[data["layer"] == strong])
    layers = [
        alt.Chart(data).mark_line(strokeWidth=1, color=NEUTRAL, opacity=0.45).encode(x=x, y=y, detail=detail),
    ]
    if data["low"].notna().any():
        band = chosen.mark_area(color=LAYER_SHADES[0], opacity=0.25)
        layers.append(band.encode(x=x, y=alt.Y("low:Q", title=y["title"]), y2=alt.Y2("high:Q")))
    layers.append(chosen.mark_line(strokeWidth=2.5, color=LAYER_SHADES[0]).encode(x=x, y=y))
    layers.append(
        chosen.mark_point(filled=True, size=22, color=LAYER_SHADES[0], opacity=1).encode(
            x=x, y=y, tooltip=alt.Tooltip("sentence:N")
        )
    )
    return layers


def _with_zero(frame: pd.DataFrame) -> pd.DataFrame:
    """With no expert there is no work: where every line begins."""
    columns = ["layer", "experts", "share", "low", "high", "counted", "sentence"]
    first = frame[columns].drop_duplicates("layer").assign(experts=0, counted=0.0, sentence="No expert, no work.")
    for name in ("share", "low", "high"):
        first[name] = first[name].where(first[name].isna(), 0.0)
    return pd.concat([first, frame[columns]], ignore_index=True).sort_values(["layer", "experts"], ignore_index=True)


def _ends(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    most = int(frame["experts"].max())
    said = [f"If all experts were alike, N of them would take N/{most} of the work."] * 2
    return pd.DataFrame({"experts": [0, most], "value": [0.0, 1.0], "sentence": said, "name": name})


def _chart(layers: list[alt.Chart], data: pd.DataFrame) -> alt.LayerChart:
    return alt.LayerChart(layer=layers, data=data, autosize=AUTOSIZE, width=WIDTH, height=HEIGHT)
