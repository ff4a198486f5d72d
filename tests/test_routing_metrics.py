"""Measures of routing: answers worked out by hand, laws they must obey, agreement with scikit-learn and scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy as scipy_entropy
from sklearn.metrics import mutual_info_score, normalized_mutual_info_score

from moe_core.routing import RoutingTrace, metrics
from moe_core.routing.counts import domain_counts, expert_counts

MEASURES = (
    metrics.expert_load,
    metrics.load_balance,
    metrics.router_entropy,
    metrics.domain_specialization,
    metrics.domain_nmi,
    metrics.domain_divergence,
)


def trace_of(indices: Any, *, num_experts: int, **fields: Any) -> RoutingTrace:
    """A trace with equal weights on the used slots of `indices` [T,K] or [L,T,K]."""
    chosen = np.asarray(indices)
    fields.setdefault("token_ids", np.zeros(chosen.shape[-2], int))
    scores = np.where(chosen < 0, 0.0, 1.0 / chosen.shape[-1])
    return RoutingTrace.from_arrays(router_indices=chosen, router_scores=scores, num_experts=num_experts, **fields)


def random_trace(seed: int, *, L: int = 2, T: int = 60, K: int = 2, E: int = 5, drop: float = 0.1) -> RoutingTrace:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(L, T, E)) * 2
    chosen = np.argsort(-logits, axis=-1)[..., :K]
    documents = np.sort(rng.integers(0, 6, T))
    return trace_of(
        np.where(rng.random((L, T, K)) < drop, -1, chosen),
        num_experts=E,
        router_logits=logits,
        token_ids=rng.integers(0, 4, T),
        document_ids=documents,
        domain_ids=documents % 3,
        domains=["a", "b", "c"],
    )


def test_expert_load_by_hand() -> None:
    frame = metrics.expert_load(trace_of([[0, 1], [0, 2], [0, -1]], num_experts=4))
    assert frame["tokens"].tolist() == [3, 1, 1, 0]
    assert frame["share"].tolist() == [0.6, 0.2, 0.2, 0.0]
    assert frame["expert"].tolist() == [0, 1, 2, 3]


def test_load_balance_by_hand() -> None:
    # Loads 3, 1, 1, 0: mean 1.25, variance (3.0625 + .0625 + .0625 + 1.5625) / 4.
    row = metrics.load_balance(trace_of([[0, 1], [0, 2], [0, -1]], num_experts=4)).iloc[0]
    assert row["load_imbalance"] == pytest.approx(2.4)
    assert row["max_violation"] == pytest.approx(1.4)
    assert row["cv"] == pytest.approx(np.sqrt(1.1875) / 1.25)
    assert row["dead_experts"] == 1
    assert row["effective_experts"] == pytest.approx(np.exp(scipy_entropy([3, 1, 1])))
    # Sorted 0, 1, 1, 3 with weights -3, -1, 1, 3: 9 / (4 * 5).
    assert row["gini"] == pytest.approx(0.45)
    assert row["dropped_fraction"] == pytest.approx(1 / 6)
    assert row["tokens"] == 3


def test_even_and_collapsed_routing_reach_the_stated_ends() -> None:
    E = 8
    even = metrics.load_balance(trace_of(np.arange(32).reshape(32, 1) % E, num_experts=E)).iloc[0]
    assert even[["load_imbalance", "max_violation", "cv", "dead_experts", "effective_experts", "gini"]].tolist() == (
        pytest.approx([1, 0, 0, 0, E, 0])
    )
    one = metrics.load_balance(trace_of(np.zeros((32, 1), int), num_experts=E)).iloc[0]
    assert one[["load_imbalance", "dead_experts", "effective_experts", "gini"]].tolist() == (
        pytest.approx([E, E - 1, 1, (E - 1) / E])
    )


def test_two_collapsed_layers_are_not_hidden_by_each_other() -> None:
    frame = metrics.load_balance(trace_of([[[0]] * 4, [[1]] * 4], num_experts=2))
    assert frame["load_imbalance"].tolist() == [2, 2]


def test_a_layer_that_routed_nothing_is_unknown_not_even() -> None:
    trace = trace_of([[[0], [1]], [[-1], [-1]]], num_experts=2, domain_ids=[0, 1], domains=["a", "b"])
    for measure in MEASURES:
        measure(trace)
    row = metrics.load_balance(trace).iloc[1]
    assert np.isnan(row["load_imbalance"])
    assert (row["dead_experts"], row["dropped_fraction"]) == (2, 1)
    assert np.isnan(metrics.domain_nmi(trace)["nmi"][1])


def test_router_entropy_by_hand_from_logits() -> None:
    logits = [[0.0, 0.0, 0.0, 0.0], [np.log(2), np.log(1), np.log(1), -40.0]]
    frame = metrics.router_entropy(trace_of([[0], [0]], num_experts=4, router_logits=logits))
    second = -(0.5 * np.log(0.5) + 0.5 * np.log(0.25)) / np.log(4)
    assert frame["basis"].tolist() == ["logits"]
    assert frame["router_entropy"][0] == pytest.approx((1 + second) / 2, rel=1e-3)  # logits are float16
    assert frame["confidence"][0] == pytest.approx((0.25 + 0.5) / 2, rel=1e-3)
    assert frame["margin"][0] == pytest.approx((0 + 0.25) / 2, rel=1e-3)


def test_router_entropy_of_independent_sigmoids() -> None:
    trace = trace_of([[0]], num_experts=2, router_logits=[[0.0, np.log(1 / 3)]], score_function="sigmoid")
    frame = metrics.router_entropy(trace)  # 1/2 and 1/4, so shares 2/3 and 1/3
    assert frame["confidence"][0] == pytest.approx(2 / 3, rel=1e-3)
    assert frame["router_entropy"][0] == pytest.approx(scipy_entropy([2, 1]) / np.log(2), rel=1e-3)


def test_router_entropy_from_scores_skips_tokens_without_expert() -> None:
    trace = RoutingTrace.from_arrays(
        router_indices=[[0, 1], [-1, -1], [2, 1]],
        router_scores=[[0.3, 0.3], [0.0, 0.0], [1.5, 0.5]],
        num_experts=4,
        token_ids=[0, 0, 0],
    )
    frame = metrics.router_entropy(trace)
    assert frame["basis"].tolist() == ["scores"]
    expected = (np.log(2) + scipy_entropy([3, 1])) / 2 / np.log(4)
    assert frame["router_entropy"][0] == pytest.approx(expected)
    assert frame["confidence"][0] == pytest.approx((0.5 + 0.75) / 2)
    assert frame["margin"][0] == pytest.approx((0 + 0.5) / 2)
    per_token = metrics.token_entropy(trace, 0)
    assert per_token.dtype == np.float32
    assert per_token[[0, 2]] == pytest.approx(np.array([0.5, scipy_entropy([3, 1]) / np.log(4)]))


def test_one_expert_leaves_no_choice() -> None:
    frame = metrics.router_entropy(trace_of([[0], [0]], num_experts=1, router_logits=[[3.0], [1.0]]))
    assert frame[["router_entropy", "confidence", "margin"]].iloc[0].tolist() == [0, 1, 1]
    assert metrics.load_balance(trace_of([[0]], num_experts=1))["load_imbalance"].tolist() == [1]


def test_token_entropy_is_what_router_entropy_averages(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = random_trace(0, drop=0)
    whole = metrics.router_entropy(trace)
    monkeypatch.setattr(metrics.decisions, "_CHUNK_TOKENS", 7)
    pd.testing.assert_frame_equal(metrics.router_entropy(trace), whole)
    assert metrics.token_entropy(trace, 1).mean() == pytest.approx(whole["router_entropy"][1])


def test_domain_specialization_by_hand() -> None:
    # Four legal tokens in two documents, two code tokens in one.
    trace = trace_of(
        [[0, 1], [0, 1], [0, 2], [0, 3], [2, 3], [3, -1]],
        num_experts=4,
        document_ids=[0, 0, 1, 1, 2, 2],
        domain_ids=[0, 0, 0, 0, 1, 1],
        domains=["legal", "code", "absent"],
    )
    frame = metrics.domain_specialization(trace).set_index(["domain", "expert"])
    assert frame.loc["legal", "share"].tolist() == [1, 0.5, 0.25, 0.25]
    assert frame.loc["legal", "lift"].tolist() == [2, 1, 0.5, 0.5]
    assert frame.loc["code", "tokens"].tolist() == [0, 0, 1, 2]
    assert frame.loc["code", "share"].tolist() == [0, 0, 0.5, 1]
    assert frame.loc["legal", "domain_tokens"].tolist() == [4] * 4
    assert frame.loc["code", "low"].isna().all()  # one document: nothing to judge by
    assert frame.loc["absent", "share"].isna().all()
    assert frame.loc[["code", "absent"], "uncertain"].all()


def test_the_interval_is_wilsons_where_tokens_are_independent() -> None:
    # 4,000 documents of one token: the t quantile is the normal one to three digits, the design effect N / (N - 1).
    chosen = (np.arange(4000) % 5 == 0).astype(int)
    row = metrics.domain_specialization(trace_of(chosen[:, None], num_experts=2, document_ids=np.arange(4000))).iloc[1]
    n, p, z = 4000, 0.2, 1.959964
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    expected = np.array([centre - half, centre + half]) / (1 + z**2 / n)
    assert row[["low", "high"]].to_numpy(float) == pytest.approx(expected, abs=2e-5)


def test_the_interval_widens_when_documents_differ() -> None:
    documents = np.repeat(np.arange(20), 50)
    mixed, clumped = np.tile([0, 1], 500), documents % 2
    widths = [
        metrics.domain_specialization(trace_of(x[:, None], num_experts=2, document_ids=documents)).eval("high - low")[0]
        for x in (mixed, clumped)
    ]
    assert widths[1] > 5 * widths[0]


@pytest.mark.parametrize("alike", [0.0, 1.0])
def test_95_percent_of_the_intervals_hold_the_truth(alike: float) -> None:
    """Gumbel noise per token and per document: by symmetry every expert's true lift is 1."""
    rng, held = np.random.default_rng(0), []
    documents = np.repeat(np.arange(40), 25)
    for _ in range(60):
        logits = rng.gumbel(size=(4, 1000, 8)) + alike * rng.normal(size=(4, 40, 8))[:, documents]
        trace = trace_of(
            np.argsort(-logits, axis=-1)[..., :2],
            num_experts=8,
            token_ids=np.zeros(1000, int),
            document_ids=documents,
            domain_ids=documents % 4,
            domains=list("abcd"),
        )
        held.append(metrics.domain_specialization(trace)["uncertain"].mean())
    assert 0.92 < np.mean(held) < 0.99


def test_domain_nmi_at_its_ends() -> None:
    domains = {"domain_ids": [0, 0, 1, 1], "domains": ["a", "b"]}
    known = metrics.domain_nmi(trace_of([[0], [0], [1], [1]], num_experts=2, **domains)).iloc[0]
    assert known.tolist() == pytest.approx([0, 1, np.log(2), np.log(2)])
    blind = metrics.domain_nmi(trace_of([[0], [1], [0], [1]], num_experts=2, **domains)).iloc[0]
    assert blind["nmi"] == pytest.approx(0, abs=1e-12)
    assert np.isnan(metrics.domain_nmi(trace_of([[0], [1]], num_experts=2))["nmi"][0])


def test_jsd_at_its_ends() -> None:
    trace = trace_of([[0], [1], [0], [2]], num_experts=3, domain_ids=[0, 0, 1, 2], domains=["a", "b", "c", "none"])
    frame = metrics.domain_divergence(trace).set_index(["domain_i", "domain_j"])["jsd"]
    assert len(frame) == 6
    assert frame["a", "c"] == pytest.approx(np.log(2))
    assert frame["a", "b"] == pytest.approx(jensenshannon([0.5, 0.5, 0], [1, 0, 0]) ** 2)
    assert np.isnan(frame["a", "none"])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_information_agrees_with_scikit_learn_and_scipy(seed: int) -> None:
    trace = random_trace(seed)
    nmi, jsd = metrics.domain_nmi(trace), metrics.domain_divergence(trace).set_index(["layer", "domain_i", "domain_j"])
    for row, indices_TK in enumerate(trace.router_indices):
        used = indices_TK >= 0
        experts = indices_TK[used]
        domains = np.broadcast_to(trace.domain_ids[:, None], used.shape)[used]
        assert nmi["information_nats"][row] == pytest.approx(mutual_info_score(domains, experts), abs=1e-9)
        # With "min" scikit-learn divides by the smaller entropy, ours by H(domain): compare where that is the smaller.
        if nmi["domain_entropy_nats"][row] <= scipy_entropy(np.bincount(experts)):
            expected = normalized_mutual_info_score(domains, experts, average_method="min")
            assert nmi["nmi"][row] == pytest.approx(expected, abs=1e-9)
        a, b = (np.bincount(experts[domains == m], minlength=5) for m in (0, 1))
        if a.any() and b.any():
            assert jsd["jsd"][row, "a", "b"] == pytest.approx(jensenshannon(a, b) ** 2, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_renaming_experts_renames_the_answer(seed: int) -> None:
    trace = random_trace(seed)
    new_name = np.random.default_rng(seed).permutation(trace.num_experts)
    indices = np.where(trace.router_indices < 0, -1, new_name[trace.router_indices])
    assert trace.router_logits is not None
    renamed = RoutingTrace.from_arrays(
        router_indices=indices,
        router_scores=trace.router_scores,
        router_logits=trace.router_logits[..., np.argsort(new_name)],
        num_experts=trace.num_experts,
        token_ids=trace.token_ids,
        document_ids=trace.document_ids,
        domain_ids=trace.domain_ids,
        domains=trace.domains,
    )
    for measure in MEASURES:
        before, after = measure(trace), measure(renamed)
        if "expert" in before:
            keys = [key for key in ("layer", "expert", "domain") if key in before]
            before = before.assign(expert=new_name[before["expert"]]).sort_values(keys, ignore_index=True)
            after = after.sort_values(keys, ignore_index=True)
        pd.testing.assert_frame_equal(before, after, check_exact=False, rtol=1e-7, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), cut=st.integers(1, 59))
def test_counts_of_two_parts_add_up(seed: int, cut: int) -> None:
    trace = random_trace(seed)
    first = np.arange(60) < cut
    for count in (expert_counts, domain_counts):
        assert np.array_equal(count(trace.select(first)) + count(trace.select(~first)), count(trace))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), K=st.integers(1, 5), drop=st.sampled_from([0.0, 0.3, 1.0]))
def test_every_value_stays_in_its_documented_range(seed: int, K: int, drop: float) -> None:
    trace = random_trace(seed, K=K, drop=drop)
    E = trace.num_experts
    ranges = {"share": (0, 1), "load_imbalance": (1, E), "cv": (0, E), "dead_experts": (0, E)}
    ranges |= {"effective_experts": (1, E), "gini": (0, 1), "dropped_fraction": (0, 1), "router_entropy": (0, 1)}
    ranges |= {"confidence": (0, 1), "margin": (0, 1), "lift": (0, E / K), "low": (0, 1), "high": (0, 1)}
    ranges |= {"nmi": (0, 1), "jsd": (0, np.log(2)), "chance": (0, 1), "domain_nmi": (0, 1)}
    for measure in MEASURES:
        for name, column in measure(trace).items():
            if name in ranges:
                low, high = ranges[str(name)]
                assert column.dropna().between(low - 1e-9, high + 1e-9).all(), (measure.__name__, name)
    shares = metrics.domain_specialization(trace).dropna()
    assert (shares["low"] <= shares["share"]).all()
    assert (shares["share"] <= shares["high"]).all()
