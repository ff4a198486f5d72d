"""Captions obey the verdict: routing of chance shows no pattern in any page's words; not tested is not "not found"."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from app_support import Open, shown

from moe_core.figures.associations import flow_map_figure
from moe_core.figures.formation import formation_figure, formation_verdict
from moe_core.figures.measures import chance_figure
from moe_core.figures.run_figures import sections_of_trace
from moe_core.figures.sankey import flow_sankey_figure
from moe_core.routing import RoutingTrace, baselines, metrics
from moe_core.routing.calibration import random_trace
from moe_core.routing.measures.against_chance import CHANCE, UNKNOWN, Finding, judge, layers_verdict, not_tested
from moe_core.routing.measures.causes import ablation_verdict
from moe_core.routing.measures.context_independence import token_verdict
from moe_core.routing.measures.domains import domain_cells, domain_verdict
from moe_core.routing.measures.experts import expert_sentence
from moe_core.routing.measures.movers import movers_verdict
from moe_core.routing.measures.registry import COACTIVATION
from moe_core.training.probe import domain_experts, ownership_events
from tests.routing_support import trace_of

PATTERN = re.compile(
    r"beyond chance goes|Strongest:|specialises in|times its usual share|Experts know a token's domain"
    r"|more often than chance|more than chance:|tells about its expert in the next|Not healthy|surely changed\. Most"
    r"|has become a|were formed by|alone explains \d"
)
"""What a caption says of a pattern that it holds for real."""
SEEDS = range(3)


@pytest.fixture(scope="module")
def chance_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chance") / "chance.parquet"
    random_trace(1).save(path)
    return path


@pytest.mark.parametrize("page", ["overview", "tokens", "domains", "experts", "flow"])
def test_no_page_claims_a_pattern_in_routing_of_chance(
    page: str, chance_file: Path, tmp_path: Path, dashboard: Open
) -> None:
    at = dashboard(tmp_path, page, ("--trace", str(chance_file)), layer="0")
    assert at.title[0].value
    assert not at.error
    assert PATTERN.search(shown(at)) is None


@pytest.mark.parametrize("view", ["Chosen together", "Token to token"])
def test_no_closer_look_claims_a_pattern_in_routing_of_chance(
    view: str, chance_file: Path, tmp_path: Path, dashboard: Open
) -> None:
    at = dashboard(tmp_path, "flow", ("--trace", str(chance_file)), layer="0")
    at.segmented_control(key="flow_shown").set_value(view).run()
    assert not at.exception
    assert PATTERN.search(shown(at)) is None


@pytest.mark.parametrize("seed", SEEDS)
def test_no_figure_of_a_report_claims_a_pattern_in_routing_of_chance(seed: int) -> None:
    for section in sections_of_trace(random_trace(seed)):
        for figure in section.figures:
            assert PATTERN.search(figure.verdict) is None, figure.verdict


def test_the_patterns_of_planted_routing_are_claimed() -> None:
    """The expression finds the words: else the tests above could not fail."""
    said = " ".join(
        figure.verdict
        for planted in ("domain_nmi", "layer_flow", "vocabulary")
        for section in sections_of_trace(random_trace(0, planted=planted))
        for figure in section.figures
    )
    for words in ("beyond chance goes", "Strongest:", "Experts know a token's domain", "tells about its expert in the"):
        assert words in said
    assert len(PATTERN.findall(said)) >= 8


def test_the_map_and_the_bands_of_chance_are_faint_and_name_no_stream() -> None:
    trace = random_trace(0)
    flow, test = metrics.layer_flow(trace), baselines.layer_flow(trace)
    assert set(test["verdict"]) == {CHANCE}
    figure = flow_map_figure(flow, test, 0)
    (cells,) = [rows for rows in figure.chart.to_dict()["datasets"].values() if "sentence" in rows[0]]
    assert all(row["uncertain"] and "go to" in row["sentence"] for row in cells)
    assert "beyond chance goes" not in figure.verdict
    strengths = {colour.rsplit(",", 1)[1] for colour in flow_sankey_figure(flow, test).chart.data[0].link.color}
    assert strengths == {"0.10)"}


def test_an_expert_of_chance_is_credited_with_no_token_and_no_domain() -> None:
    trace = random_trace(0)
    test, cells = baselines.vocabulary(trace), domain_cells(trace)
    for expert in range(trace.num_experts):
        tokens = metrics.token_experts(trace, 0, expert)
        text = expert_sentence(0, expert, cells=cells, tokens=tokens, vocabulary=test)
        assert text.endswith(
            "prefers no domain distinguishably from chance; takes no token distinguishably from chance."
        )
    planted = random_trace(0, planted="vocabulary")
    tokens, test = metrics.token_experts(planted, 0, 0), baselines.vocabulary(planted)
    assert "times its usual share" in expert_sentence(0, 0, tokens=tokens, vocabulary=test)
    untested = test.assign(verdict="cannot be tested: no token occurs often enough")
    assert "whether it follows tokens cannot be tested" in expert_sentence(0, 0, tokens=tokens, vocabulary=untested)


def snapshots(seed: int, steps: int, *, settled_from: int | None = None) -> dict[int, RoutingTrace]:
    rng = np.random.default_rng(seed)
    last = rng.integers(0, 6, (1, 200, 1))
    drawn = [rng.integers(0, 6, (1, 200, 1)) for _ in range(steps)]
    kept = [last if settled_from is not None and step >= settled_from else one for step, one in enumerate(drawn)]
    return {step: trace_of(one, num_experts=6, document_ids=np.arange(200) // 20) for step, one in enumerate(kept)}


def test_experts_that_change_until_the_end_were_not_formed_by_it() -> None:
    text = formation_verdict(metrics.formation(snapshots(0, 5)), 0)
    assert "6 of its 6 experts still changed before the last snapshot, step 4" in text
    settled = formation_verdict(metrics.formation(snapshots(0, 5, settled_from=2)), 0)
    assert "its experts were formed by step 2 of 4" in settled


@pytest.mark.parametrize("seed", SEEDS)
def test_no_share_below_zero_stands_beside_a_scale_from_zero_to_one(seed: int) -> None:
    forming = metrics.formation(snapshots(seed, 4))
    assert forming["agreement"].min() < 0
    chart = formation_figure(forming, 0).chart.to_dict()
    (cells,) = [rows for rows in chart["datasets"].values() if "label" in rows[0]]
    assert all(0 <= row["value"] <= 1 for row in cells)
    assert not any(row["label"].startswith(("-", "−")) for row in cells)


def test_one_event_an_expert_and_step_whatever_number_of_domains() -> None:
    """Three domains; two of them share expert 3, which the third hardly takes."""
    rng = np.random.default_rng(0)
    document_T = np.arange(2400) // 50
    domain_T = document_T % 3
    chosen = np.where((domain_T < 2) & (rng.random(2400) < 0.8), 3, rng.integers(0, 3, 2400))
    trace = trace_of(
        chosen[:, None], num_experts=8, document_ids=document_T, domain_ids=domain_T,
        domains=["general", "finance", "legal"], layers=[1],
    )  # fmt: skip
    found = [owner for owner in domain_experts(trace, []) if owner[0][1] == 3]
    assert {owner[2] for owner, _ in found} == {"general", "finance"}
    (event,) = ownership_events(found)
    assert re.fullmatch(
        r"expert 3 in layer 1 has become a (general and finance|finance and general) expert: "
        r"\w+ tokens choose it 6\.\d times their even share, \w+ tokens choose it 6\.\d times their even share",
        event,
    )


def test_no_domain_comes_to_own_an_expert_by_chance() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        document_T = np.arange(400) // 20
        trace = trace_of(
            rng.integers(0, 64, (3, 400, 1)), num_experts=64, document_ids=document_T, domain_ids=document_T % 4,
            domains=list("abcd"),
        )  # fmt: skip
        assert domain_experts(trace, []) == []


FINDING = Finding("finds clearly", "finds slightly")


def test_what_was_not_tested_is_not_called_chance() -> None:
    assert judge(math.nan, 0.5, clear_effect=0.1, finding=FINDING) == UNKNOWN
    assert judge(0.5, 0.5, clear_effect=0.1, finding=FINDING) == CHANCE
    reason = "cannot be tested: no token has two experts"
    frame = pd.DataFrame({"layer": [0, 1, 2], "verdict": [CHANCE, reason, reason], "effect": np.nan})
    words: dict[str, Any] = {"clear": "A", "slight": "B"}
    assert layers_verdict(frame, FINDING, "{}".format, **words) == (
        f"Not distinguishable from chance: do not read patterns into this map; layers 1, 2 {reason}."
    )
    assert not_tested(frame[:1]) == ""
    found = frame.assign(verdict=["finds clearly", CHANCE, reason], effect=[0.3, 0.0, np.nan], p_adjusted=0.01)
    text = layers_verdict(found, FINDING, "{}".format, **words)
    assert text.endswith(f"; layer 1 not distinguishable from chance; layer 2 {reason}.")


def test_a_layer_that_cannot_be_tested_says_why_beside_its_bar_and_in_the_report() -> None:
    rng = np.random.default_rng(0)
    single = np.stack([np.argsort(rng.random((200, 6)), axis=1)[:, :2], np.full((200, 2), -1)])
    single[1, :, 0] = rng.integers(0, 6, 200)
    trace = trace_of(single, num_experts=6, document_ids=np.arange(200) // 10)
    figure = chance_figure(COACTIVATION, baselines.coactivation(trace))
    (bars,) = [rows for rows in figure.chart.to_dict()["datasets"].values() if "sentence" in rows[0]]
    assert [row["sentence"] for row in bars if row["layer"] == 1] == [
        "Layer 1: cannot be tested: no token has two experts."
    ]
    assert "layer 1 cannot be tested: no token has two experts" in figure.verdict


def test_cells_and_experts_of_untestable_text_say_so() -> None:
    trace = trace_of(np.arange(40)[:, None] % 4, num_experts=4, document_ids=np.arange(40) // 20)
    cells = domain_cells(trace)
    assert cells["p_value"].isna().all()
    assert "cannot be tested on this text" in expert_sentence(0, 1, cells=cells)
    assert "cannot be tested" in domain_verdict(baselines.domain_nmi(trace))


def test_effects_and_changes_of_one_source_are_not_called_chance() -> None:
    effects = pd.DataFrame(
        {
            "layer": 0, "expert": [0, 1], "domain": "all", "delta_nats": [0.2, 0.1], "low": np.nan, "high": np.nan,
            "uncertain": True,
        }
    )  # fmt: skip
    assert "cannot be tested on text of one source" in ablation_verdict(effects)
    assert "cannot be tested on text of one source" in expert_sentence(0, 1, effects=effects)
    rng = np.random.default_rng(0)
    one, other = (trace_of(rng.integers(0, 4, (30, 1)), num_experts=4, document_ids=[0] * 30) for _ in range(2))
    assert "cannot be tested" in movers_verdict(metrics.routing_movers(one, other))


def test_the_token_alone_explains_no_more_than_chance_where_it_does_not() -> None:
    for seed in SEEDS:
        assert "no more of the choice of expert than" in token_verdict(metrics.context_independence(random_trace(seed)))
