"""How tokens travel from layer to layer, as a Sankey diagram: the one picture Vega-Lite cannot draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

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
_OTHERS = -1
_FAINT, _STRONG = 0.1, 0.65
_HEIGHT = 520


def flow_sankey_figure(flow: pd.DataFrame, test: pd.DataFrame, layers: Sequence[int] | None = None) -> Figure:
    """How do tokens travel through the layers? Frames of metrics.layer_flow and baselines.layer_flow; a Plotly figure.

    `layers` are consecutive MoE layers (default: the first MAX_SANKEY_LAYERS); more raise UsageError. A band is as wide
    as its tokens and has the colour of the expert it comes from; it is the stronger, the more the flow exceeds chance,
    and faint throughout where the layers have nothing to do with each other.
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
    return Figure(
        "flow_sankey", "How tokens travel", "Which ways do tokens take from layer to layer?", verdict,
        _sankey(frame, chosen, found), frame,
    )  # fmt: skip


def _sankey(frame: pd.DataFrame, layers: list[int], found: set[int]) -> go.Figure:
    import plotly.graph_objects as go

    links = _merged_flows(frame)
    nodes = _nodes(links, layers)
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
                "pad": 8,
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
        margin={"l": 24, "r": 24, "t": 36, "b": 12},
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
    links = links.assign(probability=links["tokens"] / source, lift=links["tokens"] * total / (source * target))
    links["sentence"] = [
        f"{percent(row.probability)} of the tokens of {_name(row.expert)} in layer {row.layer} go to "
        f"{_name(row.next_expert)} in layer {row.next_layer}, {number(row.lift)} times as often as chance"
        for row in rows(links)
    ]
    return links


def _nodes(links: pd.DataFrame, layers: list[int]) -> pd.DataFrame:
    """layer, expert, tokens, x, y (0..1, from the top), sentence; the others last in their layer."""
    nodes = _tokens_through(links)
    nodes = nodes.assign(last=nodes["expert"] == _OTHERS).sort_values(["layer", "last", "expert"], ignore_index=True)
    share = nodes["tokens"] / nodes.groupby("layer")["tokens"].transform("sum")
    middle = share.groupby(nodes["layer"]).cumsum() - share / 2
    # Plotly takes 0 and 1 for "not given".
    nodes["y"] = np.clip(middle, 0.001, 0.999)
    nodes["x"] = np.clip([layers.index(int(layer)) / (len(layers) - 1) for layer in nodes["layer"]], 0.001, 0.999)
    nodes["sentence"] = [
        f"Layer {row.layer}, {_name(row.expert)}: {percent(part)} of the choices"
        for row, part in zip(rows(nodes), share, strict=True)
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
