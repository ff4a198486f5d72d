"""Go to one expert of one layer, or to one token, from any page: by what was clicked in a figure or a table, or by a
button."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlencode

import pandas as pd
import streamlit as st

from app import state
from app.components.page import EXPERTS, TOKENS
from moe_core.figures.maps import CELL

# Streamlit's own st.switch_page refuses where widgets own what stands in the URL, as run and layer do.
_MOUNT = st.components.v2.component(
    "moescope_goto", html="<span></span>", js=Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
)


def go_to_expert(layer: int, expert: int, run: str | None = None) -> None:
    """For callbacks: show this expert of this layer on the Experts page, of the chosen run or of another `run`. The
    browser's Back returns to the page that was left, with its choices: the address names the run, the layer and the
    expert, and is one step of its history."""
    _go(EXPERTS, {state.LAYER: layer, state.EXPERT: expert}, run)


def go_to_token(document: int, position: int) -> None:
    """For callbacks: show this token of the routing that is measured on the Tokens page, in the chosen layer."""
    layer = st.session_state.get(state.LAYER)
    _go(TOKENS, {state.LAYER: layer, state.DOCUMENT: document, state.TOKEN: position})


def go_to_click(key: str, rows: pd.DataFrame | None = None) -> None:
    """For the on_select of the figure or table under `key`: go to the expert that was clicked (expert_of_click)."""
    if (clicked := expert_of_click(key, rows)) is not None:
        go_to_expert(*clicked)


def go_to_cell(cell: Mapping[str, Any]) -> None:
    """For show_figure's on_cell: go to the expert of a map's cell. A cell that names none leads nowhere."""
    if (named := _expert_of(cell)) is not None:
        go_to_expert(*named)


def expert_of_click(key: str, rows: pd.DataFrame | None = None) -> tuple[int, int] | None:
    """(layer, expert) of what is selected in the figure or table under `key`; None where nothing is, or no expert.

    A map of Altair names them by its selection CELL; a mark of Plotly by its customdata, which begins with them. Of a
    table `rows` has the columns layer and expert, in the order in which it is sent; a row or a cell may be selected.
    """
    selection: Mapping[str, Any] = st.session_state[key].selection
    if rows is not None:
        places = [*selection.get("rows", []), *(row for row, _ in selection.get("cells", []))]
        return _expert_of(rows.iloc[places[0]]) if places else None
    if points := selection.get("points"):
        named = dict(zip(("layer", "expert"), points[0].get("customdata") or (), strict=False))
        return _expert_of(named)
    cells = selection.get(CELL)
    return _expert_of(cells[0]) if cells else None


def follow() -> None:
    """Put what goes there on the page; the frame does, once."""
    page = st.session_state.pop(state.GOING_PAGE, EXPERTS)
    query = st.session_state.pop(state.GOING_TO, None)
    _MOUNT(key="goto", data={"page": PurePosixPath(page).stem, "query": query})


def _go(page: str, choices: Mapping[str, int | None], run: str | None = None) -> None:
    chosen, compared = st.session_state.get(state.RUN), st.session_state.get(state.COMPARE)
    is_other = run is not None and run != chosen
    address = {state.RUN: run} if is_other else {state.RUN: chosen, state.COMPARE: compared}
    known = {key: value for key, value in {**address, **choices}.items() if value is not None and value != ""}
    st.session_state[state.GOING_PAGE], st.session_state[state.GOING_TO] = page, urlencode(known)


def _expert_of(named: Mapping[str, Any] | pd.Series[Any]) -> tuple[int, int] | None:
    layer, expert = named.get("layer"), named.get("expert")
    return None if layer is None or expert is None else (int(layer), int(expert))
