"""All experts of a model in one sortable table; selecting a row opens the expert."""

from __future__ import annotations

from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

from app import state
from app.components.figure import term_help
from moe_core.figures.labels import rows
from moe_core.routing.measures.domains import preferred
from moe_core.runs.expert_names import NO_NAMES, ExpertNames

KEY = "experts_table"
ROWS_SHOWN = 12
COLUMNS = ["layer", "expert", "name", "share", "lift", "domain", "domain_lift", "formed_at", "delta_nats"]


def expert_table(
    load: pd.DataFrame,
    cells: pd.DataFrame,
    formed: pd.DataFrame | None = None,
    effects: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One row an expert: layer, expert, share, lift (times its even share), domain and domain_lift (the one it most
    surely prefers; "" and NaN where it prefers none), formed_at (step) and delta_nats (what it is worth; both NaN where
    unknown, and delta_nats where uncertain).

    Frames of metrics.expert_load, baselines.domain_cells, metrics.formed_at and evaluation's ablation_map.
    """
    even = 1 / load.groupby("layer")["expert"].transform("size")
    table = load.assign(lift=load["share"] / even)[["layer", "expert", "tokens", "share", "lift"]]
    best = preferred(cells).drop_duplicates(["layer", "expert"])
    best = best[["layer", "expert", "domain", "lift"]].rename(columns={"lift": "domain_lift"})
    table = table.merge(best, on=["layer", "expert"], how="left")
    table["domain"] = table["domain"].fillna("")
    extra = {"formed_at": None if formed is None else formed.rename(columns={"step": "formed_at"})}
    if effects is not None:
        extra["delta_nats"] = effects[(effects["domain"] == "all") & ~effects["uncertain"].astype(bool)]
    for column in ("formed_at", "delta_nats"):
        frame = extra.get(column)
        if frame is None:
            table[column] = float("nan")
        else:
            table = table.merge(frame[["layer", "expert", column]], on=["layer", "expert"], how="left")
    return table


def pick_from_table(table: pd.DataFrame, names: ExpertNames = NO_NAMES) -> None:
    """Draw the table; a selected row becomes the chosen expert of all pages. Unknown columns are left out."""
    number = st.column_config.NumberColumn
    given = [names.by_expert.get((row.layer, row.expert)) for row in rows(table)]
    table = table.assign(name=pd.Series(given, index=table.index, dtype=object))
    shown = [column for column in COLUMNS if table[column].notna().any()]
    st.dataframe(
        table[shown].assign(share=100 * table["share"]),
        hide_index=True,
        key=KEY,
        on_select=partial(_open, table[["layer", "expert"]]),
        selection_mode="single-row",
        height=36 * (min(len(table), ROWS_SHOWN) + 1),
        column_config={
            "layer": number("Layer", width="small"),
            "expert": number("Expert", width="small"),
            "name": st.column_config.TextColumn("Name", help="That somebody gave it, above this table."),
            "share": st.column_config.ProgressColumn(
                "Load",
                format="%.1f %%",
                min_value=0,
                max_value=100 * float(table["share"].max()),
                help=term_help("expert load"),
            ),
            "lift": number("× even load", format="%.2f", help="1 is an even load."),
            "domain": st.column_config.TextColumn("Prefers", help="The domain it most surely prefers; empty: none."),
            "domain_lift": number("× even share", format="%.1f", help=term_help("lift")),
            "formed_at": number("Formed at step", format="%d", help="See the Time page."),
            "delta_nats": number(
                "Worth, nats", format="%+.3f", help="Rise of the loss without this expert; empty: unknown or uncertain."
            ),
        },
    )


def _open(rows: pd.DataFrame) -> None:
    selected: list[Any] = st.session_state[KEY].selection.rows
    if selected:
        chosen = rows.iloc[selected[0]]
        state.open_expert(int(chosen["layer"]), int(chosen["expert"]))


def most_telling(table: pd.DataFrame, layer: int) -> int:
    """The expert of `layer` to open first: the one that most prefers a domain, else the busiest."""
    own = table[table["layer"] == layer]
    column = "domain_lift" if own["domain_lift"].notna().any() else "share"
    return int(own["expert"].iloc[int(own[column].argmax())])
