"""Null models and the words made of them: chance is called chance, a planted expert is found."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from moe_core.errors import UsageError
from moe_core.routing import RoutingTrace, baselines, metrics
from moe_core.routing.measures import domains
from moe_core.routing.measures.context_independence import NO_TEST, token_verdict
from moe_core.routing.measures.domains import domain_cell, domain_verdict, strongest_expert
from moe_core.routing.measures.glossary import GLOSSARY
from moe_core.routing.measures.health import describe_model
from moe_core.words import number, p_value, percent


def make_trace(
    seed: int, *, planted: float = 0.0, alike: float = 0.0, documents: int = 40, domains: int = 4, L: int = 1
) -> RoutingTrace:
    """Random top-2 routing of documents of 25 tokens over 8 experts.

    `planted`: how much every token prefers its domain's expert; `alike`: how much tokens of a document share tastes.
    """
    rng = np.random.default_rng(seed)
    document_ids = np.repeat(np.arange(documents), 25)
    domain_ids = document_ids % domains
    logits = rng.gumbel(size=(L, len(document_ids), 8)) + alike * rng.normal(size=(L, documents, 8))[:, document_ids]
    logits[:, np.arange(len(document_ids)), domain_ids] += planted
    indices = np.argsort(-logits, axis=-1)[..., :2]
    return RoutingTrace.from_arrays(
        router_indices=indices,
        router_scores=np.full(indices.shape, 0.5),
        num_experts=8,
        token_ids=np.zeros(len(document_ids), int),
        document_ids=document_ids,
        domain_ids=domain_ids,
        domains=[f"d{i}" for i in range(domains)],
    )


@pytest.mark.parametrize(("alike", "L"), [(0.0, 1), (1.0, 1), (0.5, 4)])
def test_random_routing_is_called_chance_in_90_of_100_seeds(alike: float, L: int) -> None:
    frames = [baselines.domain_nmi(make_trace(seed, alike=alike, L=L)) for seed in range(100)]
    assert sum((frame["verdict"] == baselines.CHANCE).all() for frame in frames) >= 90
    # The p-value of chance is uniform; with 200 permutations it has 201 steps.
    assert stats.kstest(pd.concat(frames).groupby(level=0)["p_value"].get_group(0), "uniform").pvalue > 0.001


def test_a_planted_domain_expert_is_found_in_every_seed() -> None:
    for seed in range(30):
        frame = baselines.domain_nmi(make_trace(seed, planted=1.5, alike=0.5), permutations=99)
        assert frame["verdict"].tolist() == [baselines.CLEARLY]
        assert frame["p_value"][0] == pytest.approx(1 / 100)
        assert frame["effect"][0] == pytest.approx(frame["nmi"][0] - frame["null_mean"][0])
        assert frame["nmi"][0] > frame["null_p99"][0] >= frame["null_mean"][0]


def test_significance_without_size_is_only_slight() -> None:
    frame = baselines.domain_nmi(make_trace(0, planted=0.4, documents=400))
    assert frame["p_value"][0] < 0.01
    assert frame["verdict"].tolist() == [baselines.SLIGHTLY]


def test_the_nmi_is_that_of_metrics_and_the_seed_repeats_it() -> None:
    trace = make_trace(3, planted=0.5, L=3)
    frame = baselines.domain_nmi(trace, permutations=50, seed=7)
    assert frame["nmi"].tolist() == metrics.domain_nmi(trace)["nmi"].tolist()
    pd.testing.assert_frame_equal(frame, baselines.domain_nmi(trace, permutations=50, seed=7))
    assert not frame.equals(baselines.domain_nmi(trace, permutations=50, seed=8))


def test_working_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = make_trace(1, planted=0.5, L=2)
    whole = baselines.domain_nmi(trace, permutations=20)
    monkeypatch.setattr(domains, "_CHUNK_NUMBERS", 7 * 2 * 4 * 8)  # seven permutations at a time
    pd.testing.assert_frame_equal(baselines.domain_nmi(trace, permutations=20), whole)


def test_labels_are_shuffled_over_documents_not_tokens() -> None:
    """Every document has an expert of its own, whatever its domain: a token-wise shuffle would call that a finding."""
    document_ids = np.repeat(np.arange(8), 100)
    trace = RoutingTrace.from_arrays(
        router_indices=document_ids[:, None],
        router_scores=np.ones((800, 1)),
        num_experts=8,
        token_ids=np.zeros(800, int),
        document_ids=document_ids,
        domain_ids=document_ids % 2,
        domains=["a", "b"],
    )
    frame = baselines.domain_nmi(trace)
    assert frame["nmi"][0] == pytest.approx(1)
    assert frame["p_value"][0] == 1
    assert frame["verdict"].tolist() == [baselines.CHANCE]
    per_token = RoutingTrace.from_arrays(
        router_indices=trace.router_indices,
        router_scores=trace.router_scores,
        num_experts=8,
        token_ids=trace.token_ids,
        domain_ids=trace.domain_ids,
        domains=trace.domains,
    )
    assert baselines.domain_nmi(per_token, permutations=50)["verdict"].tolist() == [baselines.CLEARLY]


@pytest.mark.parametrize(
    ("documents", "domains", "verdict", "sentence"),
    [
        (5, 1, baselines.ONE_DOMAIN, "All text is of one domain"),
        (4, 4, baselines.FEW_DOCUMENTS, "Too few documents to tell (4 documents)"),
        (6, 3, baselines.FEW_DOCUMENTS, "Too few documents to tell (6 documents)"),  # 6!/(2!^3 3!) = 15 splits
        (7, 3, baselines.CLEARLY, "Experts know"),
    ],
)
def test_what_cannot_be_tested_is_said(documents: int, domains: int, verdict: str, sentence: str) -> None:
    frame = baselines.domain_nmi(make_trace(0, planted=5.0, documents=documents, domains=domains))
    assert frame["verdict"].tolist() == [verdict]
    assert domain_verdict(frame).startswith(sentence)
    if verdict != baselines.CLEARLY:
        assert frame[["null_mean", "null_p99", "p_value", "effect"]].isna().all(axis=None)


def test_permutations_must_be_positive() -> None:
    with pytest.raises(UsageError, match="permutations is 0"):
        baselines.domain_nmi(make_trace(0), permutations=0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_adjusted_p_values_are_scipys(p_values: list[float]) -> None:
    expected = stats.false_discovery_control(p_values)
    assert baselines.adjust(np.array(p_values)) == pytest.approx(expected)
    with_gap = baselines.adjust(np.array([np.nan, *p_values]))
    assert np.isnan(with_gap[0])
    assert with_gap[1:] == pytest.approx(expected)


def nmi_frame(*rows: tuple[int, float, float, float, str]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["layer", "nmi", "null_mean", "p_adjusted", "verdict"])
    interval = {"estimate": 0.9 * frame["nmi"], "low": 0.8 * frame["nmi"], "high": frame["nmi"]}
    return frame.assign(effect=frame["nmi"] - frame["null_mean"], sources=40, **interval)


def test_domain_verdict_in_words() -> None:
    clear = (3, 0.2134, 0.0201, 1 / 201, baselines.CLEARLY)
    weaker = (2, 0.05, 0.01, 0.02, baselines.CLEARLY)
    chance = (0, 0.01, 0.01, 0.7, baselines.CHANCE)
    assert domain_verdict(nmi_frame(weaker, clear)) == (
        "Experts know a token's domain: layer 3 most, NMI 0.19 (95 % interval 0.17 to 0.21); as "
        "counted 0.21 against 0.02 by chance (p < 0.005)."
    )
    assert domain_verdict(nmi_frame(clear)) == (
        "Experts know a token's domain: NMI 0.19 (95 % interval 0.17 to 0.21); as "
        "counted 0.21 against 0.02 by chance (p < 0.005)."
    )
    assert domain_verdict(nmi_frame(chance, clear)).endswith("; layer 0 not distinguishable from chance.")
    assert domain_verdict(nmi_frame(chance)) == ("Not distinguishable from chance: do not read patterns into this map.")
    slight = (1, 0.0031, 0.001, 0.03, baselines.SLIGHTLY)
    assert domain_verdict(nmi_frame(slight)) == (
        "Experts know a token's domain only slightly better than chance: NMI 0.0028 (95 % interval 0.0025 to "
        "0.0031); as counted 0.0031 against 0.001 by chance (p < 0.05), too little to rely on."
    )


def test_cells_of_real_frames_in_words() -> None:
    trace = make_trace(0, planted=3.0)
    frame = baselines.domain_cells(trace)
    assert strongest_expert(frame).startswith("Strongest: in layer 0, expert ")
    assert " of d" in strongest_expert(frame)
    chance = baselines.domain_cells(make_trace(0, documents=4))
    assert strongest_expert(chance) == "No single expert is surely preferred by any domain."
    assert domain_cell(chance.iloc[0]).endswith("; of one source only, so uncertain")


def test_domain_cell_and_token_verdict_in_words() -> None:
    cell = {"expert": 5, "domain": "legal", "share": 0.314, "lift": 2.51, "lift_low": 2.2, "lift_high": 2.8}
    assert domain_cell(cell | {"uncertain": False}) == (
        "expert 5 takes 31 % of legal tokens, 2.5 times its even share, 95 % interval 2.2 to 2.8"
    )
    assert domain_cell(cell | {"uncertain": True}).endswith(": uncertain")
    assert domain_cell(cell | {"share": np.nan}) == "no legal tokens in this trace"
    context = pd.DataFrame({"layer": [0, 1], "token_share": [0.2, 0.45], "token_chance": 0.03, "domain_share": 0.04})
    context = context.assign(domain_beyond_token=0.02, domain_beyond_chance=0.01, tokens=99)
    assert token_verdict(context) == (
        "The token alone explains 45 % of the choice of expert in layer 1 (3 % by chance), its domain 4 %; "
        "what the domain adds to the token is 2 % (1 % by chance). "
        "This is a description, no test: its chance takes tokens to be independent."
    )
    assert token_verdict(context.assign(domain_beyond_token=np.nan)).endswith(f"its domain 4 %. {NO_TEST}")
    assert token_verdict(context.assign(token_share=np.nan)).startswith("No token occurs often enough")


def test_describe_model_in_words() -> None:
    assert describe_model(layers=4, experts=8, top_k=2) == "4 MoE layers of 8 experts, 2 for each token."
    assert "8 experts, at most 4 for each" in describe_model(layers=4, experts=8, top_k=4, varying=True)
    assert describe_model(layers=1, experts=8, top_k=1, total_parameters=27_300_000, active_parameters=999_600) == (
        "1 MoE layer of 8 experts, 1 for each token; 27.3M parameters, 1000k active for each token."
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.2134, "0.21"), (1.5, "1.5"), (2.0, "2.0"), (12.6, "13"), (1234.5, "1,235"), (0.00123, "0.0012"), (0, "0")],
)
def test_numbers_for_people(value: float, text: str) -> None:
    assert number(value) == text


def test_percent_and_p_for_people() -> None:
    assert [percent(x) for x in (0, 0.0004, 0.004, 0.31, 1.0)] == [
        "0 %",
        "under 0.1 %",
        "0.4 %",
        "31 %",
        "100 %",
    ]
    assert [p_value(x) for x in (0.0005, 1 / 201, 0.3, 1.0)] == [
        "p < 0.001",
        "p < 0.005",
        "p = 0.30",
        "p = 1.00",
    ]
    assert percent(np.nan) == number(np.nan) == "unknown"


def test_the_glossary_is_one_line_each() -> None:
    needed = ["expert", "router", "layer", "MaxVio", "NMI", "lift", "null", "p-value", "perplexity", "nats", "JSD"]
    needed += ["expert load", "load imbalance", "dead expert", "router entropy", "bits per byte"]
    needed += ["guessing by token frequency"]
    assert not [name for name in [*needed, "dropped tokens"] if name not in GLOSSARY]
    for name, term in GLOSSARY.items():
        assert term.name == name
        assert term.one_line.endswith(".")
        assert len(term.one_line) < 140
        assert "\n" not in "".join((term.one_line, term.formula, term.chance, term.source))
        assert term.help.startswith(term.one_line)
