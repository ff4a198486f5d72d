"""How tokens travel from layer to layer, as a Sankey diagram: the one picture Vega-Lite cannot draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moe_core.errors import UsageError
from moe_core.figures.figure import Figure
from moe_core.figures.labels import rows
from moe_core.figures.palette import NEUTRAL, expert_colour
from moe_core.routing.measures.flow import flow_found, flow_verdict
from moe_core.words import number, percent

if TYPE_CHECKING:
    import plotly.graph_objects as go

MAX_SANKEY_LAYERS = 6
MAX_SANKEY_EXPERTS = 12
"""If a layer has more experts, the busiest are drawn and the others are one grey node."""
MAX_STREAMS = 20
"""Between two layers, where the busiest experts take so little that the grey node would be most of the picture: then
only the streams that exceed chance most are drawn."""
_MOST_OTHERS = 0.5
_CANDIDATES = 400
_OTHERS = -1
_FAINT, _STRONG = 0.1, 0.65
_HEIGHT = 520
_TOP, _BOTTOM, _SIDE = 36, 12, 24
_PAD = 16
"""Points between two nodes: room for a line of text each, however thin they are."""


def flow_sankey_figure(flow: pd.DataFrame, test: pd.DataFrame, layers: Sequence[int] | None = None) -> Figure:
    """How do tokens travel through the layers? Frames of metrics.layer_flow and baselines.layer_flow; a Plotly figure.

    `layers` are consecutive MoE layers (default: the first MAX_SANKEY_LAYERS); more raise UsageError. A band is as wide
    as its tokens and has the colour of the expert it comes from; it is the stronger, the more the flow exceeds chance,
    and faint throughout where the layers have nothing to do with each other. Of many experts the busiest are drawn, or
    the strongest streams (MAX_STREAMS), and the verdict says which part of all that is.
    """
    known = sorted({int(value) for value in (*flow["layer"], *flow["next_layer"])})
    chosen = known[:MAX_SANKEY_LAYERS] if layers is None else sorted({int(layer) for layer in layers})
    strange = [layer for layer in chosen if layer not in known]
    if strange or not 2 <= len(chosen) <= MAX_SANKEY_LAYERS:
        raise UsageError(
            f"layers {chosen} cannot be drawn; expected 2 to {MAX_SANKEY_LAYERS} of {known}, one after the other"
        )
    frame = flow[flow["layer"].isin(chosen) & flow["next_layer"].isin(chosen)].reset_index(drop=True)
    if frame["layer"].nunique() != len(chosen) - 1:
        raise UsageError(f"layers {chosen} are not consecutive; expected neighbours among {known}")
    verdict = flow_verdict(test[test["layer"].isin(set(frame["layer"]))])
    found = {layer for layer in chosen if flow_found(test[test["layer"] == layer])}
    links = _merged_flows(frame)
    if _part_of_others(links) > _MOST_OTHERS:
        links = _strongest_streams(frame)
    figure = Figure(
        "flow_sankey", "How tokens travel", "Which ways do tokens take from layer to layer?", verdict,
        _sankey(links, _nodes(links, frame, chosen), chosen, found), frame,
    )  # fmt: skip
    return replace(figure, verdict=f"{verdict} {streams_drawn(figure)}".strip())


def streams_drawn(figure: Figure) -> str:
    """Which part of the flow a flow_sankey_figure draws, in a sentence; "" where it is all."""
    sankey: Any = figure.chart  # of Plotly, whose traces have no types
    drawn = sankey.data[0].link.value
    part = float(sum(drawn) / max(figure.frame["tokens"].sum(), 1))
    if part > 0.999:
        return ""
    return f"Drawn are the strongest {len(drawn)} streams between single experts, {percent(part)} of all."


def _sankey(links: pd.DataFrame, nodes: pd.DataFrame, layers: list[int], found: set[int]) -> go.Figure:
    import plotly.graph_objects as go

    place = {(row.layer, row.expert): i for i, row in enumerate(rows(nodes))}
    figure = go.Figure(
        go.Sankey(
            arrangement="snap",
            node={
                "label": ["others" if expert == _OTHERS else str(expert) for expert in nodes["expert"]],
                "color": [_colour(int(expert)) for expert in nodes["expert"]],
                "customdata": list(nodes["sentence"]),
                "hovertemplate": "%{customdata}<extra></extra>",
                "x": list(nodes["x"]),
                "y": list(nodes["y"]),
                "pad": _PAD,
                "thickness": 14,
                "line": {"width": 0},
            },
            link={
                "source": [place[row.layer, row.expert] for row in rows(links)],
                "target": [place[row.next_layer, row.next_expert] for row in rows(links)],
                "value": [float(tokens) for tokens in links["tokens"]],
                "color": [
                    _faded_colour(_colour(row.expert), row.lift if row.layer in found else 1.0) for row in rows(links)
                ],
                "customdata": list(links["sentence"]),
                "hovertemplate": "%{customdata}<extra></extra>",
            },
        )
    )
    figure.update_layout(
        height=_HEIGHT,
        margin={"l": _SIDE, "r": _SIDE, "t": _TOP, "b": _BOTTOM},
        paper_bgcolor="rgba(0,0,0,0)",
        font={"color": NEUTRAL, "size": 12},
        annotations=[
            {
                "text": f"layer {layer}", "x": i / (len(layers) - 1), "y": 1.0, "yshift": 22, "showarrow": False,
                "xref": "paper", "yref": "paper",
                "xanchor": "left" if i == 0 else "right" if i == len(layers) - 1 else "center",
            }
            for i, layer in enumerate(layers)
        ],
    )  # fmt: skip
    return figure


def _merged_flows(frame: pd.DataFrame) -> pd.DataFrame:
    """Flows with tokens > 0 between the busiest experts; what comes from or goes to the others is summed."""
    flow = frame[frame["tokens"] > 0]
    busy = _tokens_through(flow)
    busy["rank"] = busy.groupby("layer")["tokens"].rank(ascending=False, method="first")
    many = busy.groupby("layer")["expert"].transform("size") > MAX_SANKEY_EXPERTS
    busy = busy[~many | (busy["rank"] < MAX_SANKEY_EXPERTS)]
    kept = set(zip(busy["layer"], busy["expert"], strict=True))
    links = flow.assign(
        expert=[row.expert if (row.layer, row.expert) in kept else _OTHERS for row in rows(flow)],
        next_expert=[row.next_expert if (row.next_layer, row.next_expert) in kept else _OTHERS for row in rows(flow)],
    )
    ends = ["layer", "next_layer", "expert", "next_expert"]
    links = links.groupby(ends)["tokens"].sum().reset_index()
    source = links.groupby(["layer", "expert"])["tokens"].transform("sum")
    target = links.groupby(["layer", "next_expert"])["tokens"].transform("sum")
    total = links.groupby("layer")["tokens"].transform("sum")
    return _said(links.assign(probability=links["tokens"] / source, lift=links["tokens"] * total / (source * target)))


def _strongest_streams(frame: pd.DataFrame) -> pd.DataFrame:
    """The flows that exceed chance by most tokens: up to MAX_STREAMS from layer to layer, between at most
    MAX_SANKEY_EXPERTS experts of each."""
    flow = frame[(frame["tokens"] > 0) & (frame["lift"] > 0)]
    flow = flow.assign(excess=flow["tokens"] * (1 - 1 / flow["lift"]))
    flow["rank"] = flow.groupby("layer")["excess"].rank(ascending=False, method="first")
    # The strongest of every pair of layers first, so that one pair does not take the room of its neighbours.
    ordered = flow[flow["rank"] <= _CANDIDATES].sort_values(["rank", "layer"])
    drawn: dict[int, set[int]] = {}
    streams: dict[int, int] = {}
    kept = []
    for row in rows(ordered):
        ends = ((row.layer, row.expert), (row.next_layer, row.next_expert))
        full = any(
            expert not in drawn.get(layer, set()) and len(drawn.get(layer, set())) >= MAX_SANKEY_EXPERTS
            for layer, expert in ends
        )
        if full or streams.get(row.layer, 0) >= MAX_STREAMS:
            continue
        for layer, expert in ends:
            drawn.setdefault(layer, set()).add(expert)
        streams[row.layer] = streams.get(row.layer, 0) + 1
        kept.append(row.Index)
    return _said(ordered.loc[kept].sort_values(["layer", "expert", "next_expert"], ignore_index=True))


def _said(links: pd.DataFrame) -> pd.DataFrame:
    sentences = [
        f"{percent(row.probability)} of the tokens of {_name(row.expert)} in layer {row.layer} go to "
        f"{_name(row.next_expert)} in layer {row.next_layer}, {number(row.lift)} times as often as chance"
        for row in rows(links)
    ]
    return links.assign(sentence=sentences)


def _part_of_others(links: pd.DataFrame) -> float:
    """Part of the tokens that come from experts that are drawn as one."""
    return float(links["tokens"][links["expert"] == _OTHERS].sum() / max(links["tokens"].sum(), 1))


def _nodes(links: pd.DataFrame, frame: pd.DataFrame, layers: list[int]) -> pd.DataFrame:
    """layer, expert, tokens, x, y (0..1, from the top), sentence; the others last in their layer. Shares are of all
    that is in `frame`, drawn or not."""
    nodes = _tokens_through(links)
    nodes = nodes.assign(last=nodes["expert"] == _OTHERS).sort_values(["layer", "last", "expert"], ignore_index=True)
    by_layer = nodes.groupby("layer")["tokens"]
    room = _HEIGHT - _TOP - _BOTTOM
    free = (by_layer.size() - 1) * _PAD
    scale = float(((room - free) / by_layer.sum()).min())  # points a token, as Plotly makes it
    above = (room - free - by_layer.sum() * scale) / 2
    middle = (by_layer.cumsum() - nodes["tokens"] / 2) * scale + by_layer.cumcount() * _PAD + nodes["layer"].map(above)
    # Plotly takes 0 and 1 for "not given".
    nodes["y"] = np.clip(middle / room, 0.001, 0.999)
    nodes["x"] = np.clip([layers.index(int(layer)) / (len(layers) - 1) for layer in nodes["layer"]], 0.001, 0.999)
    every = _tokens_through(frame)
    of_layer = every.groupby("layer")["tokens"].sum()
    through = {(row.layer, row.expert): row.tokens / of_layer[row.layer] for row in rows(every)}
    nodes["sentence"] = [
        f"Layer {row.layer}, {_name(row.expert)}: "
        f"{percent(through.get((row.layer, row.expert), row.tokens / of_layer[row.layer]))} of the choices"
        for row in rows(nodes)
    ]
    return nodes


def _tokens_through(flow: pd.DataFrame) -> pd.DataFrame:
    """layer, expert, tokens: what comes into each expert or leaves it, whichever is more (they differ at the ends)."""
    into = flow[["next_layer", "next_expert", "tokens"]].set_axis(["layer", "expert", "tokens"], axis=1)
    both = [part.groupby(["layer", "expert"])["tokens"].sum().reset_index() for part in (into, flow)]
    return pd.concat(both).groupby(["layer", "expert"])["tokens"].max().reset_index()


def _name(expert: int) -> str:
    return "the other experts" if expert == _OTHERS else f"expert {expert}"


def _colour(expert: int) -> str:
    return NEUTRAL if expert == _OTHERS else expert_colour(expert)


def _faded_colour(colour: str, lift: float) -> str:
    """The colour, faint up to chance and full from twice chance on."""
    strength = _FAINT + (_STRONG - _FAINT) * float(np.clip(lift - 1, 0, 1))
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{strength:.2f})"
