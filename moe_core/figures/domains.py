"""Figures of domains: which experts prefer which kind of text, and how much an expert knows about it."""

from __future__ import annotations

from dataclasses import replace

import altair as alt
import pandas as pd

from moe_core.errors import UsageError
from moe_core.figures.expert_order import ALL, MapView, away_from_one, in_columns
from moe_core.figures.figure import Figure
from moe_core.figures.labels import rows
from moe_core.figures.layout import COLUMN_AXIS, DOMAIN_AXIS, ROW_AXIS, bars_height, layered, percent_axis
from moe_core.figures.maps import kinds_map, lift_map
from moe_core.figures.palette import BAR, HEAT, NEUTRAL, domain_colour
from moe_core.routing.measures.context_independence import token_verdict
from moe_core.routing.measures.domains import (
    CLEARLY,
    SLIGHTLY,
    domain_cell,
    domain_verdict,
    preferred,
    strongest_expert,
)
from moe_core.routing.measures.labelled_tokens import LABEL_FINDING, beyond_token_words, label_verdict, labels_with_most
from moe_core.words import count_of, percent, sentence

NONE = "none surely"
MOST_LABELS = 24
"""Rows of a map that can be read."""
"""Kind of the experts that prefer no domain."""
_ORDER_WORDS = {"number": "", "load": ", most loaded first", "preferred domain": ", by preferred domain"}
_EXPLAINED: dict[str, tuple[str, str, str]] = {
    "the token alone": ("token_share", "token_chance", BAR),
    "its domain alone": ("domain_share", "", NEUTRAL),
    "its domain beyond the token": ("domain_beyond_token", "domain_beyond_chance", HEAT),
}
"""Series of context_figure: name, column, column of its chance, colour."""


def domain_map(
    cells: pd.DataFrame,
    layer: int,
    view: MapView = ALL,
    places: pd.DataFrame | None = None,
    what: str = "domain",
) -> alt.LayerChart:
    """Domains x experts of one layer: how often a domain's tokens choose an expert, in multiples of its even share.

    `cells` has the columns of baselines.domain_cells. The scale is that of all lift maps, so layers can be compared; a
    cell that cannot be told from text of any domain is faded. Experts stand in the order of `view`, a column with its
    number each; of too many, neighbours in the order are one column, that with the clearest preference. `what`: what a
    row is, a domain or a kind of label.
    """
    frame = cells[cells["layer"] == layer]
    if frame.empty:
        raise UsageError(f"layer {layer} has no domains; expected one of {sorted(set(cells['layer']))}")
    certain = frame["lift"].where(~frame["uncertain"].astype(bool), 1.0)
    own = frame.assign(telling=away_from_one(certain)).groupby("expert", as_index=False)["telling"].max()
    own = own.assign(layer=layer, sentence="")
    drawn, _ = in_columns(own, places, replace(view, layers=None), telling="telling", drawn="")
    frame = frame[frame["expert"].isin(drawn["expert"])]
    frame = frame.assign(sentence=[sentence(domain_cell(row._asdict())) for row in rows(frame)])
    order = "" if places is None else _ORDER_WORDS[view.order]
    left = len(own) - len(drawn)
    note = f" ({len(drawn)} of {len(own)}, those with the clearest preference)" if left and view.places is None else ""
    return lift_map(
        frame,
        x=alt.X(
            "expert:O",
            title=f"expert of layer {layer}{order}{note}",
            axis=COLUMN_AXIS,
            sort=[int(expert) for expert in drawn["expert"]],
        ),
        y=alt.Y("domain:N", title=what, sort=list(dict.fromkeys(cells["domain"])), axis=DOMAIN_AXIS),
    )


def domain_map_figure(
    cells: pd.DataFrame, nmi: pd.DataFrame, layer: int, view: MapView = ALL, places: pd.DataFrame | None = None
) -> Figure:
    """Which experts prefer which domain in one layer? Frames of baselines.domain_cells and baselines.domain_nmi.

    Where the layer as a whole is not distinguishable from chance, no cell of it is called a preference. `view` and
    `places`: see expert_order.in_columns.
    """
    frame = cells[cells["layer"] == layer].reset_index(drop=True)
    row = nmi[nmi["layer"] == layer]
    verdict = domain_verdict(row)
    if row["verdict"].isin([CLEARLY, SLIGHTLY]).all():
        verdict = f"{verdict} {strongest_expert(frame)}"
    return Figure(
        f"domain_map_layer_{layer}", f"Experts and domains in layer {layer}",
        "Which experts prefer which kind of text?", verdict, domain_map(cells, layer, view, places), frame,
    )  # fmt: skip


def label_map_figure(
    cells: pd.DataFrame, test: pd.DataFrame, layer: int, view: MapView = ALL, places: pd.DataFrame | None = None
) -> Figure:
    """Which experts prefer which label in one layer? Frames of baselines.label_cells and baselines.label_nmi.

    Of many labels those of the surest preferences and of most tokens are drawn, MOST_LABELS at most; the table has all.
    """
    frame, row = cells[cells["layer"] == layer].reset_index(drop=True), test[test["layer"] == layer]
    what, drawn = str(row["labelling"].iloc[0]), labels_with_most(frame, MOST_LABELS)
    verdict = label_verdict(row)
    if row["verdict"].isin(LABEL_FINDING.both).all():
        verdict = f"{verdict} {beyond_token_words(row)} {strongest_expert(frame)}".replace("  ", " ")
    shown = frame[frame["domain"].isin(drawn)]
    in_order = shown.assign(place=shown["domain"].map(drawn.index)).sort_values(["place", "expert"])
    left = frame["domain"].nunique() - len(drawn)
    title = what if not left else f"{what} ({len(drawn)} of {len(drawn) + left})"
    return Figure(
        f"label_map_layer_{layer}", f"Experts and labels in layer {layer}", "Which experts prefer which label?",
        verdict, domain_map(in_order.drop(columns="place"), layer, view, places, title), frame,
    )  # fmt: skip


def preferred_domains_figure(
    cells: pd.DataFrame, nmi: pd.DataFrame, view: MapView = ALL, places: pd.DataFrame | None = None
) -> Figure:
    """Which domain does each expert of all layers prefer most surely? Frames of baselines.domain_cells and
    baselines.domain_nmi.

    A cell has the colour of the domain, the stronger, the larger the lift. Experts that surely prefer none are grey, as
    are all of a layer that as a whole is not distinguishable from chance. `view` and `places`: see
    expert_order.in_columns.
    """
    domains = list(dict.fromkeys(cells["domain"]))
    found = set(nmi["layer"][nmi["verdict"].isin([CLEARLY, SLIGHTLY])])
    best = preferred(cells[cells["layer"].isin(found)]).drop_duplicates(["layer", "expert"])
    every = cells[["layer", "expert"]].drop_duplicates()
    frame = every.merge(best[["layer", "expert", "domain", "lift"]], on=["layer", "expert"], how="left")
    said = {(row.layer, row.expert): domain_cell(row._asdict()) for row in rows(best)}
    frame["telling"] = frame["lift"].fillna(0.0)
    frame["sentence"] = [
        f"Layer {row.layer}: {said.get((row.layer, row.expert), f'expert {row.expert} surely prefers no domain')}."
        for row in rows(frame)
    ]
    data, x = in_columns(frame, places, view, telling="telling", drawn="the one with the strongest preference")
    chart = kinds_map(
        data.assign(kind=data["domain"].fillna(NONE), strength=data["lift"])[
            ["layer", "expert", "column", "kind", "strength", "sentence"]
        ],
        x=x,
        y=alt.Y("layer:O", title="MoE layer", axis=ROW_AXIS),
        colours={name: domain_colour(name, domains) for name in domains},
        none=NONE,
    )
    return Figure(
        "preferred_domains", "The domain that each expert prefers", "Which experts of which layer prefer which domain?",
        preferences_verdict(frame, nmi), chart, frame.drop(columns=["telling", "sentence"]),
    )  # fmt: skip


def preferences_verdict(preferences: pd.DataFrame, nmi: pd.DataFrame) -> str:
    """How many experts surely prefer a domain, and where; of the frame of preferred_domains_figure."""
    certain = preferences.dropna(subset="domain")
    if certain.empty:
        return domain_verdict(nmi)
    by_domain = certain["domain"].value_counts()
    named = ", ".join(f"{count:,} {name}" for name, count in by_domain.items())
    most = certain["layer"].value_counts()
    layer = min(most.index[most == most.max()])
    where = (
        f"; most in layer {layer}, {count_of(int(most.max()), 'expert')}" if preferences["layer"].nunique() > 1 else ""
    )
    return f"{len(certain):,} of {count_of(len(preferences), 'expert')} surely prefer a domain: {named}{where}."


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
        tooltip=alt.Tooltip("sentence:N"),
    )
    most = float(data[["share", "chance"]].max().max()) if len(data) else 0.0
    x = alt.X("share:Q", title="part of the choice of expert explained; ○ by chance", axis=percent_axis(most))
    layers = [
        base.mark_rule(strokeWidth=2, opacity=0.6).encode(x=x, x2=alt.X2("chance:Q")),
        base.mark_point(size=60, strokeWidth=1.5).encode(x=alt.X("chance:Q")),
        base.mark_point(size=80, filled=True, opacity=1).encode(x=alt.X("share:Q")),
    ]
    return Figure(
        "context_independence", "The token or its context", "What explains the choice of expert?",
        token_verdict(context), layered(layers, data, bars_height(context["layer"].nunique()) + 30), context,
    )  # fmt: skip
