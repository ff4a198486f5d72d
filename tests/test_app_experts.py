"""The Experts page on a really trained tiny run, and the tables its card is made of."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import streamlit as st
from app_support import Open, payload_of, shown
from streamlit.testing.v1 import AppTest

from app.components import expert_card, expert_table
from app.components.concordance import CHARACTERS, concordance, shown_token
from app.components.expert_card import neighbour_table
from app.components.expert_table import most_telling
from moe_core.data.tokenizer import END_OF_TEXT
from moe_core.routing.measures.concordance import Context
from moe_core.runs import RunFolder
from moe_core.runs.expert_names import read_names

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def opened(dashboard: Open) -> Open:
    return partial(dashboard, page="experts")


def tables(at: AppTest) -> list[pd.DataFrame]:
    return [frame.value for frame in at.main.dataframe]


def test_a_link_opens_one_expert_with_its_text_load_tokens_contexts_and_neighbours(
    trained_root: Path, opened: Open
) -> None:
    at = opened(trained_root, layer="1", expert="2")
    assert at.title[0].value == "What does this expert do, and what is it worth?"
    assert "Expert 2 of layer 1 takes" in shown(at)
    assert len(at.get("vega_lite_chart")) == 2
    contexts, tokens, neighbours = tables(at)
    assert list(tokens.columns) == ["token", "share", "tokens"]
    assert set(contexts["domain"]) <= {"finance", "legal", "code", "general"}
    assert sorted(neighbours["expert"]) == [0, 1, 3]


def test_without_a_link_the_most_telling_expert_is_open_and_another_can_be_picked(
    trained_root: Path, opened: Open
) -> None:
    at = opened(trained_root, layer="0")
    assert at.session_state["expert"] in range(4)
    at.segmented_control(key="expert").set_value(3).run()
    assert not at.exception
    assert "Expert 3 of layer 0" in shown(at)


def test_a_name_is_kept_with_the_run_and_seen_on_other_pages_and_in_other_browsers(
    own_root: Path, opened: Open
) -> None:
    at = opened(own_root, layer="1", expert="2")
    key = "expert_name_tiny_1_2"
    at.text_input(key=key).set_value(HOSTILE).run()
    assert f"Expert 2, “{HOSTILE}”, of layer 1 takes" in shown(at)
    assert read_names(own_root / "tiny" / "expert_names.json")[0].name(1, 2) == HOSTILE
    at.segmented_control(key="expert").set_value(3).run()
    assert at.text_input(key="expert_name_tiny_1_3").value == ""
    assert list(tables(at)[2]["name"][tables(at)[2]["expert"] == 2]) == [HOSTILE]
    other = opened(own_root, layer="1", expert="2")
    assert other.text_input(key=key).value == HOSTILE
    other.text_input(key=key).set_value("a\u202eb").run()
    assert "the invisible character U+202E" in other.error[0].value.replace("\\", "")
    assert other.text_input(key=key).value == "a\u202eb", "what was typed is there to be mended"
    other.text_input(key=key).set_value("verbs").run()
    assert not other.error
    other.switch_page("app_pages/tokens.py").run()
    assert payload_of(other)["names"] == {"1": {"2": "verbs"}}
    other.switch_page("app_pages/overview.py").run()
    assert not other.exception
    (own_root / "tiny" / "expert_names.json").write_text("{")
    other.switch_page("app_pages/experts.py").run()
    assert "expert_names.json" in other.warning[0].value.replace("\\", "")


def test_contexts_are_looked_through_ordered_and_lengthened(trained_root: Path, opened: Open) -> None:
    at = opened(trained_root, layer="1", expert="2")
    every = caption_of_contexts(at)
    at.text_input(key="contexts_found").set_value("OF").run()
    assert every.startswith("40 at random of ")
    assert ", of " in caption_of_contexts(at)
    contexts = tables(at)[0]
    words = contexts["before"] + contexts["token"].str.replace("␣", " ") + contexts["after"]
    assert words.str.lower().str.contains("of").mean() > 0.5  # the others have it beyond what a cell shows
    assert tables(at)[1]["token"].str.lower().str.contains("of").all()
    at.selectbox(key="contexts_domain").select("legal").run()
    assert set(tables(at)[0]["domain"]) == {"legal"}
    at.text_input(key="contexts_found").set_value("").run()
    at.selectbox(key="contexts_domain").select("all domains").run()
    at.segmented_control(key="contexts_order").select("Strongest first").run()
    at.segmented_control(key="contexts_length").select("longest").run()
    strongest = tables(at)[0]
    assert strongest["weight"].is_monotonic_decreasing
    assert strongest["before"].str.len().max() > CHARACTERS
    assert len(strongest) <= 40, "only a page of rows is sent"
    at.text_input(key="contexts_found").set_value("nowhere in this text").run()
    assert "has that in its context" in shown(at)


def caption_of_contexts(at: AppTest) -> str:
    (caption,) = (line for line in shown(at).splitlines() if " in Tokens." in line)
    return caption


def test_what_an_expert_is_worth_is_asked_for_until_it_was_measured(own_root: Path, opened: Open) -> None:
    from moe_core.evaluation.ablation import ablation_map
    from moe_core.runs.checkpoint import load_run

    assert "python main.py ablate --run tiny" in shown(opened(own_root))
    loaded = load_run("tiny", own_root)
    effects = ablation_map(loaded, layers=[1], experts=[0], run=RunFolder("tiny", own_root))
    at = opened(own_root, layer="1", expert="0")
    assert "python main.py ablate" not in shown(at)
    worth = tables(at)[-1].set_index("domain")
    total = effects[effects["domain"] == "all"].iloc[0]
    assert worth.loc["all", "delta_nats"] == pytest.approx(total["delta_nats"])


def test_the_table_of_all_experts_opens_on_demand(trained_root: Path, opened: Open) -> None:
    at = opened(trained_root)
    at.session_state["experts_all"] = True
    at.run()
    table = tables(at)[0]
    assert len(table) == 8
    assert list(table.columns[:4]) == ["layer", "expert", "share", "lift"]


def test_a_run_without_a_checkpoint_shows_the_probe_and_says_so(own_root: Path, opened: Open) -> None:
    shutil.rmtree(own_root / "tiny" / "weights")
    text = shown(opened(own_root))
    assert "the probe text at step 40 (more text could not be used" in text


def test_a_run_that_trains_shows_the_probe(own_root: Path, opened: Open) -> None:
    with RunFolder("tiny", own_root).lock():
        assert "the run is being trained, more text follows when it is done" in shown(opened(own_root))


def test_a_selected_row_chooses_layer_and_expert_for_all_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    session: dict[str, object] = {}
    monkeypatch.setattr(st, "session_state", session)
    session[expert_table.KEY] = SimpleNamespace(selection=SimpleNamespace(rows=[1]))
    expert_table._open(pd.DataFrame({"layer": [0, 3], "expert": [5, 7]}))
    assert (session["layer"], session["expert"]) == (3, 7)
    session[expert_card.NEIGHBOURS] = SimpleNamespace(selection=SimpleNamespace(rows=[]))
    expert_card._open_neighbour(2, pd.Series([4]))
    assert (session["layer"], session["expert"]) == (3, 7)


def frames() -> tuple[pd.DataFrame, pd.DataFrame]:
    load = pd.DataFrame({"layer": 0, "expert": [0, 1], "tokens": [30, 10], "share": [0.75, 0.25]})
    cells = pd.DataFrame(
        {
            "layer": 0,
            "expert": [0, 0, 1, 1],
            "domain": ["law", "code", "law", "code"],
            "share": [0.8, 0.6, 0.1, 0.7],
            "expected": [0.7, 0.7, 0.3, 0.3],
            "lift": [1.5, 1.2, 0.4, 3.0],
            "lift_low": [1.3, 1.1, 0.2, 0.9],
            "uncertain": [False, False, False, True],
        }
    )
    return load, cells


def test_the_table_names_the_surest_domain_and_no_uncertain_one() -> None:
    table = expert_table.expert_table(*frames()).set_index("expert")
    assert table.loc[0, "domain"] == "law"
    assert table.loc[0, "domain_lift"] == 1.5
    assert table.loc[1, "domain"] == ""
    assert np.isnan(table.loc[1, "domain_lift"])
    assert table.loc[0, "lift"] == 1.5
    assert table[["formed_at", "delta_nats"]].isna().all(axis=None)
    assert most_telling(table.reset_index(), 0) == 0


def test_the_table_leaves_uncertain_effects_out() -> None:
    effects = pd.DataFrame(
        {
            "layer": 0,
            "expert": [0, 1, 0],
            "domain": ["all", "all", "law"],
            "delta_nats": [0.5, 0.1, 9.0],
            "uncertain": [False, True, False],
        }
    )
    formed = pd.DataFrame({"layer": 0, "expert": [0, 1], "step": [100.0, np.nan], "tokens": 3})
    table = expert_table.expert_table(*frames(), formed, effects).set_index("expert")
    assert table.loc[0, "delta_nats"] == 0.5
    assert np.isnan(table.loc[1, "delta_nats"])
    assert table.loc[0, "formed_at"] == 100


def test_where_no_domain_is_preferred_the_busiest_expert_is_opened() -> None:
    load, cells = frames()
    table = expert_table.expert_table(load, cells.assign(uncertain=True))
    assert most_telling(table, 0) == 0


def test_neighbours_are_found_on_either_side_of_a_pair_and_joined_with_likeness() -> None:
    pairs = pd.DataFrame(
        {
            "layer": [1, 1, 1, 2],
            "expert_i": [0, 0, 1, 0],
            "expert_j": [1, 2, 2, 2],
            "lift_over_chance": [0.5, 2.0, 9.0, 8.0],
            "uncertain": [True, False, False, False],
        }
    )
    both = [(i, j) for i in range(3) for j in range(3) if i != j]
    likeness = pd.DataFrame(
        {
            "layer": 1,
            "expert_i": [i for i, _ in both],
            "expert_j": [j for _, j in both],
            "gate_cosine": [10.0 * i + j if i < j else 10.0 * j + i for i, j in both],
            "weight_cosine": 0.1,
            "output_cka": 0.2,
        }
    )
    table = neighbour_table(pairs, likeness, 1, 2)
    assert list(table.columns) == ["expert", "together", "certain", "gate_cosine", "weight_cosine", "output_cka"]
    assert list(table["expert"]) == [1, 0]
    assert list(table["together"]) == [9.0, 2.0]
    assert list(table["gate_cosine"]) == [12.0, 2.0]
    assert list(neighbour_table(None, likeness, 1, 0)["expert"]) == [2, 1]
    assert neighbour_table(None, None, 1, 0).empty


def test_a_concordance_is_one_line_of_plain_text_with_the_token_in_the_middle() -> None:
    context = Context(
        document_id=0, position=3, domain="code", before=("x" * 90, "\n"), token=HOSTILE, after=("\ta", "b"), score=0.5
    )
    table = concordance([context])
    row = table.iloc[0]
    assert row["before"] == "x" * (CHARACTERS - 1) + "↵"
    assert row["token"] == HOSTILE
    assert row["after"] == "⇥ab"
    assert concordance([]).empty
    assert shown_token(END_OF_TEXT) == "(start)"
