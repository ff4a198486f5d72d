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

_HERE = Path(__file__).resolve().parent
# Streamlit's own st.switch_page refuses where widgets own what stands in the URL, as run and layer do.
_MOUNT = st.components.v2.component(
    "moescope_goto",
    html="<span></span>",
    js="".join((_HERE / name).read_text(encoding="utf-8") for name in ("history_steps.js", "goto.js")),
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


def go_to_saved(page: str, choices: Mapping[str, str], run: str) -> None:
    """For callbacks: show a page of `run` with these choices, such as the name of a saved text, in the chosen layer."""
    _go(page, {state.LAYER: st.session_state.get(state.LAYER), **choices}, run)


def go_to_row(key: str, rows: pd.DataFrame) -> None:
    """For the on_select of the table under `key`: go to the expert of the selected row. `rows` has the columns layer
    and expert, in the order in which the table is sent."""
    if selected := st.session_state[key].selection.rows:
        chosen = rows.iloc[selected[0]]
        go_to_expert(int(chosen["layer"]), int(chosen["expert"]))


def go_to_cell(cell: Mapping[str, Any]) -> None:
    """For show_figure's on_cell: go to the expert of a map's cell. A cell that names none leads nowhere."""
    if (named := expert_of(cell)) is not None:
        go_to_expert(*named)


def expert_of(cell: Mapping[str, Any]) -> tuple[int, int] | None:
    """(layer, expert) of a map's cell; None of one that stands for several experts."""
    layer, expert = cell.get("layer"), cell.get("expert")
    return None if layer is None or expert is None else (int(layer), int(expert))


def follow() -> None:
    """Put what goes there on the page, and what keeps the browser's history; the frame does, once."""
    page = st.session_state.pop(state.GOING_PAGE, EXPERTS)
    query = st.session_state.pop(state.GOING_TO, None)
    _MOUNT(key="goto", data={"page": PurePosixPath(page).stem, "query": query})


def _go(page: str, choices: Mapping[str, int | str | None], run: str | None = None) -> None:
    chosen, compared = st.session_state.get(state.RUN), st.session_state.get(state.COMPARE)
    is_other = run is not None and run != chosen
    address = {state.RUN: run} if is_other else {state.RUN: chosen, state.COMPARE: compared}
    known = {key: value for key, value in {**address, **choices}.items() if value is not None and value != ""}
    st.session_state[state.GOING_PAGE], st.session_state[state.GOING_TO] = page, urlencode(known)
