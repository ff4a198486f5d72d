"""Experts, Flow and Time on runs that leave them little, or much, to show: one layer, one expert a token, one domain
and few documents; and more experts than a page can draw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from app_support import Open, shown
from streamlit.testing.v1 import AppTest

from moe_core.config import validate_config
from moe_core.runs import RunFolder
from moe_core.training.loop import train

TINY = {"vocab_size": 300, "dim": 16, "num_heads": 1, "num_kv_heads": 1, "head_dim": 16, "max_seq_len": 64}
TRAINING = {"batch_size": 4, "seq_len": 32, "evaluation_tokens": 64, "probe_tokens": 128, "threads": 1}


@pytest.fixture(scope="module")
def odd_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs "single" (1 layer, 1 expert a token, 1 domain), "many" (72 experts) and "blind" (cannot write)."""
    root = tmp_path_factory.mktemp("odd")
    rows = [{"text": f"The {i}th garden was green again after the rain. " * 6, "domain": "only"} for i in range(12)]
    texts = root.parent / "one_domain.jsonl"
    texts.write_text("\n".join(json.dumps(row) for row in rows))
    runs: dict[str, dict[str, Any]] = {
        "single": {
            "model": {**TINY, "num_layers": 1, "num_experts": 3, "top_k": 1, "expert_hidden_dim": 16},
            "data": {"path": str(texts)},
            "training": {**TRAINING, "steps": 4, "evaluation_interval": 4},
        },
        "many": {
            "model": {**TINY, "num_layers": 2, "num_experts": 72, "top_k": 2, "expert_hidden_dim": 8},
            "data": {"documents": 12},
            "training": {**TRAINING, "steps": 4, "evaluation_interval": 2},
        },
        "blind": {
            "model": {
                **TINY,
                "num_layers": 1,
                "num_experts": 3,
                "expert_hidden_dim": 8,
                "router": {"kind": "expert_choice"},
            },
            "data": {"documents": 12},
            "training": {**TRAINING, "steps": 2, "evaluation_interval": 2},
        },
    }
    for name, tree in runs.items():
        train(RunFolder(name, root), validate_config(tree))
    return root


@pytest.fixture
def opened(dashboard: Open, odd_root: Path) -> Open:
    def open_page(page: str, **query: str) -> AppTest:
        at = dashboard(odd_root, page, **query)
        assert not at.error, at.error[0].value
        return at

    return open_page


def charts(at: AppTest) -> int:
    return len(at.get("vega_lite_chart")) + len(at.get("plotly_chart"))


def test_one_layer_of_one_expert_a_token_has_no_flow_and_no_teams_and_says_so(opened: Open) -> None:
    at = opened("flow", run="single")
    assert "Through one only: layer 0 has the only experts." in shown(at)
    assert "Every token passes one expert of a layer only" in shown(at)
    assert charts(at) == 0
    at.segmented_control(key="flow_shown").set_value("Token to token").run()
    assert not at.exception
    assert charts(at) == 1


@pytest.mark.parametrize(("page", "button"), [("generation", "Write"), ("interventions", "Write both")])
def test_a_model_that_cannot_write_says_why(opened: Open, page: str, button: str) -> None:
    at = opened(page, run="blind")
    next(one for one in at.button if one.label == button).click().run()
    assert not at.exception
    assert "sees the future" in at.error[0].value


def test_slots_that_the_rule_leaves_unused_are_no_fault(opened: Open) -> None:
    at = opened("overview", run="blind")
    assert "at most 2 for each token" in shown(at)
    assert "dropped" not in shown(at)
    at = opened("domains", run="blind")
    assert not at.exception


def test_a_card_on_text_of_one_domain_leaves_out_what_cannot_be_told(opened: Open) -> None:
    at = opened("experts", run="single")
    assert "All text is of one domain" in shown(at)
    assert "Tokens pass one expert of a layer only" in shown(at)
    assert charts(at) == 1


def test_a_film_of_one_domain_says_so_instead_of_a_map(opened: Open) -> None:
    at = opened("time", run="single", step="0")
    at.segmented_control(key="time_shown").set_value("Domains").run()
    assert not at.exception
    assert "All text is of one domain" in shown(at)


@pytest.mark.parametrize("page", ["experts", "flow", "time"])
def test_72_experts_fit_on_a_page(opened: Open, page: str) -> None:
    at = opened(page, run="many", layer="0", expert="71")
    assert charts(at) >= 2
    if page == "experts":
        assert "Expert 71 of layer 0" in shown(at)
        assert at.selectbox(key="expert").value == 71
    if page == "flow":
        at.segmented_control(key="flow_shown").set_value("Chosen together").run()
        assert not at.exception
        assert charts(at) == 2


def test_text_of_one_domain_leaves_no_empty_chart_and_no_columns_of_nothing(opened: Open) -> None:
    at = opened("domains", run="single")
    assert "one domain" in shown(at)
    assert charts(at) == 0
    assert not at.dataframe
