"""Is the routing healthy? Said only where so much text tells: no false alarm of chance, no overloaded expert missed."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from moe_core.figures.load import load_map_figure
from moe_core.routing import RoutingTrace, metrics
from moe_core.routing.measures.health import health, routing_health, undecided_layers
from moe_core.routing.statistics import clusters
from moe_core.routing.statistics.clusters import exact_limits
from tests.routing_support import trace_of


def autocorrelated(
    seed: int,
    *,
    tokens: int,
    documents: int = 1,
    experts: int = 8,
    top_k: int = 2,
    layers: int = 1,
    phi: float = 0.0,
    alike: float = 0.0,
    favourite: float = 0.0,
    dead: tuple[int, ...] = (),
    domains: int = 1,
    **fields: Any,
) -> RoutingTrace:
    """Equally busy experts whose logits are AR(1) inside a document; expert 0 liked by `favourite` more, some dead."""
    rng = np.random.default_rng(seed)
    document_T = np.arange(tokens) * documents // tokens
    noise = rng.normal(size=(layers, tokens, experts))
    logits = noise.copy()
    for t in range(1, tokens):
        if phi and document_T[t] == document_T[t - 1]:
            logits[:, t] = phi * logits[:, t - 1] + np.sqrt(1 - phi**2) * noise[:, t]
    logits += alike * rng.normal(size=(layers, documents, experts))[:, document_T]
    logits[..., 0] += favourite
    logits[..., list(dead)] = -np.inf
    fields.setdefault("document_ids", document_T)
    return trace_of(
        np.argsort(-logits, axis=-1)[..., :top_k],
        num_experts=experts,
        domain_ids=document_T % domains,
        domains=[f"d{domain}" for domain in range(domains)],
        **fields,
    )


def states(seeds: int, **routing: Any) -> list[str]:
    return [health(metrics.load_balance(autocorrelated(seed, **routing))).state for seed in range(seeds)]


CHANCE: dict[str, dict[str, Any]] = {
    "17 tokens, one document": {"tokens": 17},
    "17 tokens, one expert each": {"tokens": 17, "top_k": 1},
    "17 documents of a token": {"tokens": 17, "documents": 17, "top_k": 1},
    "17 tokens without documents": {"tokens": 17, "document_ids": None},
    "few documents, long runs": {"tokens": 200, "documents": 4, "phi": 0.95, "top_k": 1},
    "documents, long runs": {"tokens": 600, "documents": 12, "phi": 0.95, "top_k": 1},
    "one document, long runs": {"tokens": 600, "phi": 0.95, "top_k": 1},
    "runs without documents": {"tokens": 600, "phi": 0.8, "top_k": 1, "document_ids": None},
    "documents alike": {"tokens": 600, "documents": 24, "alike": 1.0, "layers": 3},
    "few documents alike": {"tokens": 600, "documents": 6, "alike": 1.0},
    "4,000 tokens of AR(1)": {"tokens": 4000, "documents": 40, "phi": 0.8},
}


@pytest.mark.parametrize("kind", CHANCE)
def test_equally_busy_experts_are_never_called_unhealthy(kind: str) -> None:
    """40 seeds without one false alarm: a rate above 9 % would show with 97.5 % certainty, and the rule allows 2.5."""
    found = states(40, **CHANCE[kind])
    assert found.count("not healthy") == 0
    assert stats.binomtest(0, 40).proportion_ci(0.95).high < 0.09


def test_128_experts_in_48_layers_on_200_tokens_are_too_little_text() -> None:
    assert set(states(6, tokens=200, experts=128, top_k=8, layers=48, documents=10)) == {"too little text"}


def test_enough_text_of_equally_busy_experts_is_healthy_in_spite_of_runs() -> None:
    assert set(states(20, tokens=4000, documents=40, phi=0.8)) == {"healthy"}
    assert set(states(20, tokens=4000)) == {"healthy"}  # one document, in stretches


def test_a_truly_overloaded_expert_is_found() -> None:
    balance = metrics.load_balance(autocorrelated(0, tokens=100_000, favourite=1.5, documents=100))
    assert balance["load_imbalance"][0] > 2.5
    found = states(20, tokens=4000, documents=40, phi=0.8, favourite=1.5, layers=2)
    assert found.count("not healthy") == 20  # so that the power is above 83 %
    assert stats.binomtest(20, 20).proportion_ci(0.95).low > 0.83


def test_a_dead_expert_is_found_and_told_from_one_not_seen() -> None:
    assert states(20, tokens=4000, documents=40, phi=0.8, dead=(3,), layers=4).count("not healthy") == 20
    enough = health(metrics.load_balance(autocorrelated(0, tokens=4000, documents=40, dead=(3, 5))))
    assert (enough.surely_dead, enough.unseen) == (2, 0)
    assert enough.sentence.startswith("Not healthy on this text: 2 dead experts in layer 0; worst load ")
    little = health(metrics.load_balance(autocorrelated(0, tokens=40, documents=20, dead=(3, 5))))
    assert (little.state, little.surely_dead, little.unseen) == ("too little text", 0, 2)
    assert little.sentence.endswith("; 2 experts not seen in this little text.")


def test_chance_calls_no_expert_dead() -> None:
    for documents in (1, 10, 100):
        for seed in range(20):
            balance = metrics.load_balance(
                autocorrelated(seed, tokens=200, documents=documents, experts=64, top_k=2, phi=0.5)
            )
            assert balance["surely_dead"][0] == 0


@pytest.mark.parametrize("limit", [2.0, 2.4])
def test_at_the_limit_each_verdict_is_wrong_in_few_texts(limit: float) -> None:
    """Expert 0 has exactly `limit` times the mean: "healthy" is wrong above 2, "not healthy" up to 2."""
    share = np.full(8, (1 - limit / 8) / 7)
    share[0] = limit / 8
    found = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        chosen = rng.choice(8, p=share, size=(1500, 1))
        trace = trace_of(chosen, num_experts=8, document_ids=np.arange(1500) // 50)
        found.append(health(metrics.load_balance(trace)).state)
    wrong = found.count("not healthy" if limit == 2.0 else "healthy")
    assert stats.binomtest(wrong, 200, 0.025, alternative="greater").pvalue > 0.001


def test_the_interval_holds_the_true_load_imbalance() -> None:
    true = metrics.load_balance(autocorrelated(999, tokens=200_000, documents=400, phi=0.8, favourite=0.7))
    held = 0
    for seed in range(60):
        trace = autocorrelated(seed, tokens=1200, documents=24, phi=0.8, favourite=0.7)
        row = metrics.load_balance(trace).iloc[0]
        held += bool(row["load_low"] <= true["load_imbalance"][0] <= row["load_high"])
    assert stats.binomtest(held, 60, 0.95, alternative="less").pvalue > 0.001


def test_what_specialised_experts_do_on_a_mix_of_domains_is_no_spread_of_chance() -> None:
    """Each domain has an expert of its own: between domains the load differs by choice of the text, not by chance."""
    rng = np.random.default_rng(0)
    domain_T = np.arange(3000) // 100 % 3
    chosen = np.where(rng.random(3000) < 0.8, domain_T, rng.integers(0, 3, 3000))[:, None]
    fields: dict[str, Any] = {"num_experts": 3, "document_ids": np.arange(3000) // 100}
    known = metrics.load_balance(trace_of(chosen, domain_ids=domain_T, domains=["a", "b", "c"], **fields)).iloc[0]
    unknown = metrics.load_balance(trace_of(chosen, **fields)).iloc[0]
    assert known["effective_tokens"] > 5 * unknown["effective_tokens"]
    assert known["load_high"] < 1.2 < unknown["load_high"]


def test_windows_of_one_text_count_as_the_few_stretches_that_they_are() -> None:
    """One long text with runs, cut into 500 windows that say nothing of where they come from."""
    rng = np.random.default_rng(0)
    chosen = np.repeat(rng.integers(0, 8, 100), 50)[:, None]  # 100 independent choices, each for 50 tokens
    row = metrics.load_balance(trace_of(chosen, num_experts=8, document_ids=np.arange(5000) // 10)).iloc[0]
    assert row["effective_tokens"] < 200


def test_few_slots_dropped_by_chance_are_no_fault() -> None:
    chosen = np.tile(np.arange(8), 5).reshape(-1, 2)
    chosen[3, 1] = -1  # 1 of 40 slots
    little = health(metrics.load_balance(trace_of(chosen, num_experts=8, document_ids=np.arange(20) // 2)))
    assert little.state == "too little text"
    many = np.tile(np.arange(8), 1000).reshape(-1, 2)
    many[::20, 1] = -1
    text = routing_health(metrics.load_balance(trace_of(many, num_experts=8, document_ids=np.arange(4000) // 50)))
    assert text.startswith("Not healthy on this text: up to 3 % of the slots dropped in layer 0; worst load ")


def test_a_layer_that_routes_nothing_is_a_fault_once_there_is_enough_text() -> None:
    layers = np.stack([np.tile(np.arange(8), 500)[:, None], np.full((4000, 1), -1)])
    fields: dict[str, Any] = {"num_experts": 8, "document_ids": np.arange(4000) // 50}
    assert routing_health(metrics.load_balance(trace_of(layers, **fields))).startswith(
        "Not healthy on this text: nothing was routed in layer 1; "
    )
    little = trace_of(layers[:, :8], num_experts=8)
    assert health(metrics.load_balance(little)).state == "too little text"


def test_layers_of_which_too_little_is_known_are_named_and_faded() -> None:
    even, uneven = np.tile(np.arange(8), 50), np.where(np.arange(400) % 8 < 5, 0, np.arange(400) % 8)
    rng = np.random.default_rng(0)
    doubtful = np.where(rng.random(400) < 0.14, 0, rng.integers(0, 8, 400))
    trace = trace_of(np.stack([even, uneven, doubtful])[..., None], num_experts=8, document_ids=np.arange(400) // 20)
    balance = metrics.load_balance(trace)
    assert undecided_layers(balance).tolist() == [False, False, True]
    assert routing_health(balance).endswith("; too little text to tell of layer 2.")
    figure = load_map_figure(metrics.expert_load(trace), balance)
    assert isinstance(figure.chart, alt.LayerChart)
    data = figure.chart.to_dict()["datasets"]
    (cells,) = [rows for rows in data.values() if "sentence" in rows[0]]
    assert {row["layer"] for row in cells if row["uncertain"]} == {2}
    assert all(row["sentence"].endswith("Too little text to tell.") for row in cells if row["uncertain"])
    assert figure.verdict == routing_health(balance)


def balance_frame(**columns: Any) -> pd.DataFrame:
    base: dict[str, Any] = {
        "layer": [0, 1], "tokens": 900, "load_imbalance": [1.2, 1.5], "load_low": [1.1, 1.4], "load_high": [1.3, 1.6],
        "dead_experts": [0, 0], "surely_dead": [0, 0], "dropped_fraction": 0.0, "dropped_low": 0.0, "sources": 30,
        "effective_tokens": 300.4, "varies_by": "source", "unit": "token",
    }  # fmt: skip
    return pd.DataFrame(base | columns)


def test_routing_health_in_words() -> None:
    text = "900 tokens of 30 sources, worth 300 independent ones"
    assert routing_health(balance_frame()) == (
        f"Healthy: no dead expert, worst load 1.5 times the mean on this text (95 % interval 1.4 to 1.6; {text})."
    )
    overloaded = {"load_imbalance": [1.1, 3.04], "load_low": [1.0, 2.5], "load_high": [1.2, 3.6]}
    assert routing_health(balance_frame(dead_experts=[0, 2], surely_dead=[0, 2], **overloaded)) == (
        "Not healthy on this text: 2 dead experts in layer 1; uneven load in layer 1; worst load 3.0 times "
        f"the mean (95 % interval 2.5 to 3.6; {text})."
    )
    assert routing_health(balance_frame(load_high=[2.1, 1.6], effective_tokens=np.nan)) == (
        "Too little text to tell whether the routing is healthy: worst load 1.2 times the mean on this text "
        "(95 % interval 1.1 to 2.1; 900 tokens of 30 sources)."
    )
    assert "up to 12 % of the slots dropped in layers 0, 1" in routing_health(
        balance_frame(dropped_fraction=[0.02, 0.12], dropped_low=[0.011, 0.1])
    )
    nothing = {
        "load_imbalance": [np.nan] * 2,
        "load_low": [np.nan] * 2,
        "load_high": [np.nan] * 2,
        "dropped_fraction": 1.0,
    }
    assert routing_health(balance_frame(dead_experts=[8, 8], surely_dead=[8, 8], **nothing)) == (
        "Not healthy on this text: nothing was routed in layers 0, 1."
    )
    entropy = pd.DataFrame({"layer": [0, 1], "router_entropy": [0.5, 0.999], "basis": "logits"})
    assert "the router hardly prefers any expert in layer 1" in routing_health(balance_frame(), entropy)
    assert routing_health(balance_frame(), entropy.assign(basis="scores")).startswith("Healthy")
    many = pd.concat([balance_frame(layer=[i, i + 1], dead_experts=1, surely_dead=1) for i in range(0, 8, 2)])
    assert "8 dead experts in layers 0, 1, 2, 3 and 4 more" in routing_health(many.reset_index(drop=True))


@given(st.integers(0, 50), st.integers(1, 50), st.floats(1e-6, 0.2))
def test_exact_limits_are_those_of_scipy(hits: int, more: int, tail: float) -> None:
    n = hits + more
    low, high = exact_limits(np.array([hits / n]), np.array([float(n)]), tail)
    expected = stats.binomtest(hits, n).proportion_ci(1 - 2 * tail, method="exact")
    assert low[0] == pytest.approx(expected.low, abs=1e-9)
    assert high[0] == pytest.approx(expected.high, abs=1e-9)


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 12), st.integers(1, 3))
def test_any_trace_has_bounds_around_its_load_and_a_verdict(
    seed: int, tokens: int, documents: int, domains: int
) -> None:
    trace = autocorrelated(seed, tokens=tokens, documents=min(documents, tokens), domains=domains, layers=2)
    balance = metrics.load_balance(trace)
    assert (balance["load_low"] <= balance["load_imbalance"] + 1e-9).all()
    assert (balance["load_imbalance"] <= balance["load_high"] + 1e-9).all()
    assert (balance["surely_dead"] <= balance["dead_experts"]).all()
    assert health(balance).state != "not healthy"  # 60 tokens of equally busy experts
    assert routing_health(balance).endswith(".")


def test_clusters_hold_every_token_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "MAX_CLUSTERS", 10)
    for documents in (1, 3, 12, 200):
        trace = autocorrelated(0, tokens=400, documents=documents, domains=2, layers=2)
        found = clusters.clusters(trace)
        assert found.total == found.tokens.sum() == 400
        assert found.counts.sum() == 400 * 2 * 2
        assert found.counts.sum(axis=(0, 2)).tolist() == (found.tokens * 4).tolist()
        assert found.sources == documents
        assert len(found.tokens) <= 32
