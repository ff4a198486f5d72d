"""From a click to an expert: what figures and tables report of a click, and the address that it leads to."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pandas as pd
import pytest
import streamlit as st
from app_support import Open, sent_to_components
from streamlit.util import AttributeDictionary

from app import state
from app.components.goto import expert_of_click, go_to_cell, go_to_click, go_to_expert

ROWS = pd.DataFrame({"layer": [3, 3, 7], "expert": [0, 5, 127], "load": [0.1, 0.2, 0.3]})


def selecting(patch: pytest.MonkeyPatch, selection: dict[str, Any]) -> dict[str, Any]:
    """A session in which what is drawn under the key "drawn" reports this selection."""
    session: dict[str, Any] = {"drawn": AttributeDictionary({"selection": selection}), state.RUN: "demo"}
    patch.setattr(st, "session_state", session)
    return session


@pytest.mark.parametrize(
    ("selection", "rows", "named"),
    [
        ({"cell": [{"layer": 2, "expert": 6}]}, None, (2, 6)),
        ({"cell": {}}, None, None),  # let go
        ({"cell": [{"layer": 2}]}, None, None),  # a cell of many experts
        ({"points": [{"x": 2, "customdata": [1, 4]}], "point_indices": [0]}, None, (1, 4)),
        ({"points": [{"x": 2}], "point_indices": [0]}, None, None),  # a mark that stands for no expert
        ({"points": [], "point_indices": []}, None, None),
        ({"rows": [1], "columns": [], "cells": []}, ROWS, (3, 5)),
        ({"rows": [], "columns": [], "cells": [(2, "load")]}, ROWS, (7, 127)),
        ({"rows": [], "columns": [], "cells": []}, ROWS, None),
    ],
)
def test_a_click_on_a_map_a_mark_or_a_row_names_layer_and_expert(
    monkeypatch: pytest.MonkeyPatch, selection: dict[str, Any], rows: pd.DataFrame | None, named: tuple[int, int] | None
) -> None:
    session = selecting(monkeypatch, selection)
    assert expert_of_click("drawn", rows) == named
    go_to_click("drawn", rows)
    assert (state.GOING_TO in session) == (named is not None)


def test_the_address_names_run_comparison_layer_and_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    session = selecting(monkeypatch, {})
    session[state.COMPARE] = "step 100"
    go_to_cell({"layer": 2, "expert": 0})
    expected = {"run": ["demo"], "compare": ["step 100"], "layer": ["2"], "expert": ["0"]}
    assert parse_qs(session[state.GOING_TO]) == expected
    session[state.COMPARE] = None
    go_to_expert(0, 3)
    assert parse_qs(session[state.GOING_TO]) == {"run": ["demo"], "layer": ["0"], "expert": ["3"]}


def test_the_page_is_sent_on_once_so_that_back_does_not_bounce(trained_root: Path, dashboard: Open) -> None:
    at = dashboard(trained_root)
    at.session_state[state.GOING_TO] = "run=tiny&layer=1&expert=3"
    at.run()
    assert sent_on(at) == {"page": "experts", "query": "run=tiny&layer=1&expert=3"}
    at.run()
    assert sent_on(at)["query"] is None


def sent_on(at: Any) -> dict[str, Any]:
    (data,) = (payload for payload in sent_to_components(at.sidebar) if "query" in payload)
    return data
