"""From a click to an expert: what figures and tables report of a click, and the address that it leads to."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pandas as pd
import pytest
import streamlit as st
from app_support import Open, sent_to_components, shown
from streamlit.util import AttributeDictionary

from app import state
from app.components.comparison_sides import go_to_cell_of
from app.components.figure import hand_on
from app.components.goto import go_to_cell, go_to_expert, go_to_row
from moe_core.figures.sides import Comparison, Side
from moe_core.routing.measured import Measured
from moe_core.routing.measures.standouts import AS_COUNTED
from tests.routing_support import trace_of

ROWS = pd.DataFrame({"layer": [3, 3, 7], "expert": [0, 5, 127], "load": [0.1, 0.2, 0.3]})


def selecting(patch: pytest.MonkeyPatch, selection: dict[str, Any]) -> dict[str, Any]:
    """A session in which what is drawn under the key "drawn" reports this selection."""
    session: dict[str, Any] = {"drawn": AttributeDictionary({"selection": selection}), state.RUN: "demo"}
    patch.setattr(st, "session_state", session)
    return session


@pytest.mark.parametrize(
    ("clicked", "selection", "address"),
    [
        (partial(hand_on, "drawn", go_to_cell), {"cell": [{"layer": 2, "expert": 6}]}, "run=demo&layer=2&expert=6"),
        (partial(hand_on, "drawn", go_to_cell), {"cell": {}}, None),  # let go
        (partial(hand_on, "drawn", go_to_cell), {"cell": [{"layer": 2}]}, None),  # a cell of many experts
        (partial(go_to_row, "drawn", ROWS), {"rows": [1], "columns": [], "cells": []}, "run=demo&layer=3&expert=5"),
        (partial(go_to_row, "drawn", ROWS), {"rows": [2], "columns": [], "cells": []}, "run=demo&layer=7&expert=127"),
        (partial(go_to_row, "drawn", ROWS), {"rows": [], "columns": [], "cells": []}, None),
    ],
)
def test_a_click_on_a_map_or_a_row_goes_to_layer_and_expert(
    monkeypatch: pytest.MonkeyPatch, clicked: Callable[[], None], selection: dict[str, Any], address: str | None
) -> None:
    session = selecting(monkeypatch, selection)
    clicked()
    assert session.get(state.GOING_TO) == address


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


def test_overview_lists_experts_to_look_at_and_each_leads_to_its_page(tmp_path: Path, dashboard: Open) -> None:
    path = tmp_path / "uneven.parquet"
    chosen = [[0, 1 + token % 6] for token in range(400)]  # expert 0 for every token of 40 texts, expert 7 for none
    trace_of(chosen, num_experts=8, document_ids=[token // 10 for token in range(400)]).save(path)
    at = dashboard(tmp_path, arguments=("--trace", str(path)), run="trace uneven.parquet")
    text = shown(at)
    for kind in ("Overloaded", "Idle", "Most specialised", "Most costly"):
        assert f"**{kind}**" in text
    assert re.search(r"4.0 times its even share \(95 % interval [\d.]+ to [\d.]+\): surely above 2 times", text)
    assert re.search(r"0 times its even share \(95 % interval 0 to [\d.]+\): surely below a quarter", text)
    assert "All text is of one domain" in text.split("Most specialised")[1]
    at.button(key="idle_0_7").click().run()
    assert parse_qs(sent_on(at)["query"]) == {"run": ["trace uneven.parquet"], "layer": ["0"], "expert": ["7"]}


def test_what_an_expert_costs_is_named_by_the_command_that_measures_it(trained_root: Path, dashboard: Open) -> None:
    assert "ablate --run tiny` does" in shown(dashboard(trained_root)).split("Most costly")[1]


def test_experts_to_look_at_of_counts_say_once_what_nothing_tells(tmp_path: Path, dashboard: Open) -> None:
    path = tmp_path / "few.counts.parquet"
    trace_of([[0, 1]] * 9 + [[0, 2]], num_experts=8).counts(by="domain").save(path)
    at = dashboard(tmp_path, arguments=("--trace", str(path)))
    text = shown(at)
    assert text.count(AS_COUNTED) == 1
    assert "4.0 times its even share: cannot be told whether it is above 2 times its even share." in text
    assert "What is lost without an expert takes the model itself" in text
    assert not at.exception


@pytest.mark.parametrize(
    ("letter", "of_runs", "address"),
    [
        ("A", True, "run=demo&compare=other&layer=4&expert=0"),
        ("B", True, "run=other&layer=4&expert=2"),  # by its own number, in its own run
        ("B", False, "run=demo&compare=other&layer=4&expert=2"),
    ],
)
def test_a_cell_of_a_comparison_leads_to_the_expert_of_its_side(
    monkeypatch: pytest.MonkeyPatch, letter: str, of_runs: bool, address: str
) -> None:
    session = selecting(monkeypatch, {})
    session[state.COMPARE] = "other"
    routing = Measured(trace_of([[[0], [1], [2]]], num_experts=3, layers=[4]))
    matches = pd.DataFrame({"layer": [4, 4, 4], "expert_a": [0, 1, 2], "expert_b": [2, 0, 1], "overlap": 1.0})
    comparison = Comparison(Side("demo", routing), Side("other", routing), "matched", True, matches)
    go_to_cell_of(comparison, letter, of_runs, {"layer": 4, "expert": 0})
    assert session[state.GOING_TO] == address
    del session[state.GOING_TO]
    go_to_cell_of(comparison, letter, of_runs, {"layer": 4})  # a cell that names no expert
    assert state.GOING_TO not in session
