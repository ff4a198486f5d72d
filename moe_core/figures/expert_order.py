"""Which part of a map of experts is drawn, and in which order its experts stand: the same words for every map.

In the order of their numbers a column is an expert. In another order each layer's experts stand by rank, so that a
column is a rank and never labelled with a number; tooltips name the expert.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import altair as alt
import pandas as pd

from moe_core.figures.layout import COLUMN_AXIS, MAX_COLUMNS
from moe_core.routing.measures.domains import preferred
from moe_core.words import ordinal

Order = Literal["number", "load", "preferred domain"]
ORDERS: tuple[Order, ...] = ("number", "load", "preferred domain")
MAX_SINGLE, MAX_CELLS = 128, 8_192
"""Up to so many experts of a layer, and so many cells in all, every expert has a cell of its own."""
_NAMED = 5
"""Columns that have a label where not every one can have its own."""


@dataclass(frozen=True)
class MapView:
    """The part of a map that is drawn, and its order."""

    order: Order = "number"
    layers: tuple[int, int] | None = None
    """The first and the last layer; None = all."""
    places: tuple[int, int] | None = None
    """The first and the last place in the order, counted from 0: numbers of experts or, in another order, rank - 1;
    None = all."""

    def of_layers(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of the layers that are drawn; all where none of them is."""
        if self.layers is None:
            return frame
        drawn = frame[frame["layer"].between(*self.layers)]
        return frame if drawn.empty else drawn


ALL = MapView()


def expert_places(load: pd.DataFrame, order: Order = "number", cells: pd.DataFrame | None = None) -> pd.DataFrame:
    """Where each expert stands among those of its layer. Columns: layer, expert, place (from 0).

    `load` has layer, expert and share (metrics.expert_load). By load the busiest stands first; by preferred domain
    those of the first domain of `cells` (baselines.domain_cells), the strongest lift first, and in the end those that
    surely prefer none. Equal experts stand by number.
    """
    frame = load[["layer", "expert", "share"]].reset_index(drop=True)
    if order == "number":
        return frame[["layer", "expert"]].assign(place=frame["expert"].astype(int))
    by = ["layer", "share"]
    if order == "preferred domain" and cells is not None:
        best = preferred_domains(cells)
        domains = list(dict.fromkeys(cells["domain"]))
        frame = frame.merge(best, on=["layer", "expert"], how="left")
        frame["domain"] = [domains.index(name) if name in domains else len(domains) for name in frame["domain"]]
        by = ["layer", "domain", "lift", "share"]
    ordered = frame.sort_values(by, ascending=[name in ("layer", "domain") for name in by], kind="stable")
    ordered["place"] = ordered.groupby("layer").cumcount()
    found: pd.DataFrame = ordered[["layer", "expert", "place"]]
    return found


def preferred_domains(cells: pd.DataFrame) -> pd.DataFrame:
    """The domain that each expert most surely prefers, of baselines.domain_cells. Columns: layer, expert, domain, lift;
    an expert that surely prefers none has no row."""
    best = preferred(cells).drop_duplicates(["layer", "expert"])
    return best[["layer", "expert", "domain", "lift"]].reset_index(drop=True)


def load_of_cells(cells: pd.DataFrame) -> pd.DataFrame:
    """layer, expert, share of the layer's choices: what metrics.expert_load says of the tokens of all domains."""
    tokens = cells.groupby(["layer", "expert"])["tokens"].sum().reset_index()
    of_layer = tokens.groupby("layer")["tokens"].transform("sum").clip(lower=1)
    return tokens.assign(share=tokens["tokens"] / of_layer)


def in_columns(
    frame: pd.DataFrame, places: pd.DataFrame | None, view: MapView, *, telling: str, drawn: str
) -> tuple[pd.DataFrame, alt.X]:
    """What of `frame`, a row for each expert, is drawn, with its `column`; and the horizontal axis. `places` are those
    of expert_places in the view's order; without them the experts stand by number.

    Where the experts are too many for cells of their own, neighbours in the order share one: the one with the largest
    `telling` is drawn, `drawn` says in words which that is, and the sentence names the others.
    """
    if places is None:
        view, places = replace(view, order="number"), expert_places(frame.assign(share=0.0))
    placed = view.of_layers(frame.merge(places, on=["layer", "expert"]))
    count = int(places["place"].max()) + 1
    first, last = (0, count - 1) if view.places is None else view.places
    if not placed["place"].between(first, last).any():
        first, last = 0, count - 1
    placed = placed[placed["place"].between(first, last)]
    shown = last - first + 1
    if shown <= MAX_SINGLE and shown * placed["layer"].nunique() <= MAX_CELLS:
        columns, placed = shown, placed.assign(column=placed["place"])
        if view.order != "number":
            placed["sentence"] = [f"{said} {_ranked(place, view)}" for said, place in _said(placed)]
    else:
        columns = min(MAX_COLUMNS, shown)
        placed = placed.assign(column=(placed["place"] - first) * columns // shown)
        placed = _most_telling(placed, telling, drawn, view)
    placed = placed.sort_values(["layer", "column"], ignore_index=True)
    return placed, _columns_axis(view, first, last, columns, drawn)


def _said(placed: pd.DataFrame) -> list[tuple[str, int]]:
    return list(zip(placed["sentence"], placed["place"], strict=True))


def _most_telling(placed: pd.DataFrame, telling: str, drawn: str, view: MapView) -> pd.DataFrame:
    cells = placed.groupby(["layer", "column"])
    placed = placed.assign(first=cells["place"].transform("min"), last=cells["place"].transform("max"))
    best = placed.sort_values([telling, "place"], ascending=[False, True], kind="stable", na_position="last")
    best = best.drop_duplicates(["layer", "column"])
    sentences = []
    for said, place, first, last in zip(best["sentence"], best["place"], best["first"], best["last"], strict=True):
        among = (
            f"Of experts {first} to {last} it is {drawn}."
            if view.order == "number"
            else f"{_ranked(place, view)} Of ranks {first + 1} to {last + 1} it is {drawn}."
        )
        sentences.append(f"{said} {among}" if last > first else said)
    return best.assign(sentence=sentences).drop(columns=["first", "last"])


def _ranked(place: int, view: MapView) -> str:
    return f"It is {ordinal(place + 1)} of its layer by {view.order}."


def _columns_axis(view: MapView, first: int, last: int, columns: int, drawn: str) -> alt.X:
    shown = last - first + 1
    is_single, is_number = columns == shown, view.order == "number"
    axis, title = COLUMN_AXIS, "expert"
    if not (is_single and is_number):
        chosen = sorted({round(i * (columns - 1) / (_NAMED - 1)) for i in range(_NAMED)})
        named: dict[int, int] = {}
        for column in chosen:
            end = column == columns - 1
            named[column] = last if end else first - (-column * shown // columns)
        labels = {
            (first + column if is_single else column): str(place) if is_number else ordinal(place + 1)
            for column, place in named.items()
        }
        chain = " : ".join(f"datum.value == {column} ? '{label}'" for column, label in labels.items())
        axis = alt.Axis(values=list(labels), labelExpr=f"{chain} : ''", labelAngle=0, labelOverlap="greedy")
    if not is_number:
        best = {"load": "most loaded first", "preferred domain": "domain by domain"}[view.order]
        title = f"rank by {view.order} within the layer, {best}"
    if not is_single:
        least, rest = divmod(shown, columns)
        size = f"{least} or {least + 1}" if rest else f"{least}"
        title += f" ({size} experts a cell, drawn is {drawn})"
    return alt.X("column:O", title=title, axis=axis)


def away_from_one(lift: pd.Series[Any]) -> pd.Series[Any]:
    """How far each lift is from 1 on the scale of lift maps, whatever the side: twice is as far as half."""
    return lift.astype(float).clip(1 / 16, 16).map(math.log2).abs()
