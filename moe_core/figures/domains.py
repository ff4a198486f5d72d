"""Figures of domains: which experts prefer which kind of text, and how much an expert knows about it."""

from __future__ import annotations

import altair as alt
import pandas as pd

from moe_core.errors import UsageError
from moe_core.figures.figure import Figure
from moe_core.figures.labels import rows
from moe_core.figures.layout import COLUMN_AXIS, MAX_COLUMNS, ROW_AXIS, bars_height, layered, percent_axis
from moe_core.figures.maps import lift_map
from moe_core.figures.palette import BAR, HEAT, NEUTRAL
from moe_core.routing.measures.context_independence import token_verdict
from moe_core.routing.measures.domains import CLEARLY, SLIGHTLY, domain_cell, domain_verdict, strongest_expert
from moe_core.words import percent, sentence

_EXPLAINED: dict[str, tuple[str, str, str]] = {
    "the token alone": ("token_share", "token_chance", BAR),
    "its domain alone": ("domain_share", "", NEUTRAL),
    "its domain beyond the token": ("domain_beyond_token", "domain_beyond_chance", HEAT),
}
"""Series of context_figure: name, column, column of its chance, colour."""


def domain_map(cells: pd.DataFrame, layer: int) -> alt.LayerChart:
    """Domains x experts of one layer: how often a domain's tokens choose an expert, in multiples of its even share.

    `cells` has the columns of baselines.domain_cells. The scale is that of all lift maps, so layers can be compared; a
    cell that cannot be told from text of any domain is faded. Of more than MAX_COLUMNS experts, those with the clearest
    preference are drawn, in their order.
    """
    frame = cells[cells["layer"] == layer]
    if frame.empty:
        raise UsageError(f"layer {layer} has no domains; expected one of {sorted(set(cells['layer']))}")
    note = ""
    if frame["expert"].nunique() > MAX_COLUMNS:
        note = f" ({MAX_COLUMNS} of {frame['expert'].nunique()}, those with the clearest preference)"
        frame = frame[frame["expert"].isin(_clearest(frame))]
    frame = frame.assign(sentence=[sentence(domain_cell(row._asdict())) for row in rows(frame)])
    return lift_map(
        frame,
        x=alt.X("expert:O", title=f"expert of layer {layer}{note}", axis=COLUMN_AXIS),
        y=alt.Y("domain:N", title="domain", sort=list(dict.fromkeys(cells["domain"]))),
    )


def domain_map_figure(cells: pd.DataFrame, nmi: pd.DataFrame, layer: int) -> Figure:
    """Which experts prefer which domain in one layer? Frames of baselines.domain_cells and baselines.domain_nmi.

    Where the layer as a whole is not distinguishable from chance, no cell of it is called a preference.
    """
    frame = cells[cells["layer"] == layer].reset_index(drop=True)
    row = nmi[nmi["layer"] == layer]
    verdict = domain_verdict(row)
    if row["verdict"].isin([CLEARLY, SLIGHTLY]).all():
        verdict = f"{verdict} {strongest_expert(frame)}"
    return Figure(
        f"domain_map_layer_{layer}", f"Experts and domains in layer {layer}",
        "Which experts prefer which kind of text?", verdict, domain_map(cells, layer), frame,
    )  # fmt: skip


def context_figure(context: pd.DataFrame) -> Figure:
    """What decides the choice: the token alone, or its kind of text beyond that? Frame of metrics.context_independence.

    A filled dot is the part of the choice explained, the hollow one of its colour what chance explains.
    """
    parts = []
    for name, (value, chance, colour) in _EXPLAINED.items():
        part = context[["layer"]].assign(
            what=name, share=context[value], chance=context[chance] if chance else float("nan"), colour=colour
        )
        parts.append(part[part["share"].notna()])
    data = pd.concat(parts, ignore_index=True)
    data["sentence"] = [
        f"Layer {row.layer}: {row.what} explains {percent(row.share)} of the choice of expert"
        + (f", {percent(row.chance)} by chance." if row.chance == row.chance else ".")
        for row in rows(data)
    ]
    names = list(_EXPLAINED)
    scale = alt.Scale(domain=names, range=[colour for *_, colour in _EXPLAINED.values()])
    base = alt.Chart(data).encode(
        y=alt.Y("layer:O", title="MoE layer", axis=ROW_AXIS),
        color=alt.Color("what:N", title=None, scale=scale, legend=alt.Legend(orient="top", symbolOpacity=1)),
        tooltip="sentence:N",
    )
    most = float(data[["share", "chance"]].max().max()) if len(data) else 0.0
    x = alt.X("share:Q", title="part of the choice of expert explained; ○ by chance", axis=percent_axis(most))
    layers = [
        base.mark_rule(strokeWidth=2, opacity=0.6).encode(x=x, x2="chance:Q"),
        base.mark_point(size=60, strokeWidth=1.5).encode(x="chance:Q"),
        base.mark_point(size=80, filled=True, opacity=1).encode(x="share:Q"),
    ]
    return Figure(
        "context_independence", "The token or its context", "What explains the choice of expert?",
        token_verdict(context), layered(layers, data, bars_height(context["layer"].nunique()) + 30), context,
    )  # fmt: skip


def _clearest(frame: pd.DataFrame) -> list[int]:
    certain = frame[~frame["uncertain"].astype(bool)]
    distance = (certain["lift"] - 1).abs().groupby(certain["expert"]).max()
    ranked = list(distance.sort_values(ascending=False).index)
    rest = [expert for expert in frame["expert"].unique() if expert not in set(ranked)]
    return [int(expert) for expert in (ranked + rest)[:MAX_COLUMNS]]
