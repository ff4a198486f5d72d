"""Measures of routing: answers worked out by hand, laws they must obey, agreement with scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_support import random_trace, renamed, trace_of
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy as scipy_entropy
from sklearn.metrics import mutual_info_score, normalized_mutual_info_score

from moe_core.errors import UsageError
from moe_core.routing import RoutingCounts, RoutingTrace, metrics
from moe_core.routing.measures import decisions
from moe_core.routing.measures.load import extremes
from moe_core.routing.trace.blocks import block_counts
from moe_core.routing.trace.counts import domain_counts, domain_tokens, expert_counts, flow_counts, pair_counts
from moe_core.routing.trace.kernels import grouped_counts

MEASURES = (
    metrics.expert_load,
    metrics.load_balance,
    metrics.dropped_by_position,
    metrics.router_entropy,
    metrics.domain_specialization,
    metrics.domain_nmi,
    metrics.domain_divergence,
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
    assert row["min_violation"] == pytest.approx(1)
    assert row["dead_experts"] == 1
    assert (row["utilisation"], row["oversubscribed"]) == (0.75, 0.25)
    assert row["top_mass"] == pytest.approx(3 / 5)
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


def test_top_mass_is_that_of_one_expert_in_ten_rounded_up() -> None:
    """11 experts with 1, 2, .. 11 tokens: the busiest two carry 21 of 66."""
    chosen = np.repeat(np.arange(11), np.arange(1, 12))[:, None]
    row = metrics.load_balance(trace_of(chosen, num_experts=11)).iloc[0]
    assert row["top_mass"] == pytest.approx(21 / 66)
    assert row["min_violation"] == pytest.approx(1 - 1 / 6)
    assert row["oversubscribed"] == pytest.approx(5 / 11)


def test_dropped_by_position_by_hand() -> None:
    # Two documents of three and two tokens; the last ones of both lose slots.
    trace = trace_of(
        [[[0, 1], [0, 1], [0, -1], [0, 1], [-1, -1]], [[0, 1]] * 5], num_experts=2, document_ids=[0, 0, 0, 1, 1]
    )
    frame = metrics.dropped_by_position(trace)
    assert frame["layer"].tolist() == [0, 0, 0, 1, 1, 1]
    assert frame["position_low"].tolist() == frame["position_high"].tolist() == [0, 1, 2] * 2
    assert frame["slots"].tolist() == [4, 4, 2] * 2
    assert frame["dropped"].tolist() == [0, 2, 1, 0, 0, 0]
    assert frame["dropped_fraction"].tolist() == [0, 0.5, 0.5, 0, 0, 0]
    two = metrics.dropped_by_position(trace, bins=2)
    assert two[["position_low", "position_high"]].to_numpy()[:2].tolist() == [[0, 1], [2, 2]]
    assert two["dropped_fraction"].tolist() == [0.25, 0.5, 0, 0]
    assert metrics.dropped_by_position(trace, bins=1)["dropped"].tolist() == [3, 0]
    with pytest.raises(UsageError, match="bins is 0; expected 1 or more"):
        metrics.dropped_by_position(trace, bins=0)


def test_positions_that_no_token_has_are_unknown() -> None:
    frame = metrics.dropped_by_position(trace_of([[0], [-1]], num_experts=1, positions=[0, 3]))
    assert frame["dropped_fraction"].isna().tolist() == [False, True, True, False]
    assert frame["dropped_fraction"].tolist()[::3] == [0, 1]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), bins=st.integers(1, 30))
def test_drops_by_position_add_up_to_the_dropped_fraction(seed: int, bins: int) -> None:
    trace = random_trace(seed, drop=0.3)
    sums = metrics.dropped_by_position(trace, bins).groupby("layer")[["dropped", "slots"]].sum()
    expected = metrics.load_balance(trace).set_index("layer")["dropped_fraction"]
    assert (sums["dropped"] / sums["slots"]).to_numpy() == pytest.approx(expected.to_numpy())


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
    assert frame["boundary"][0] == frame["margin"][0]  # one slot: the boundary is behind the first
    # Mean of (1/4, 1/4, 1/4, 1/4) and (1/2, 1/4, 1/4, 0).
    information = scipy_entropy([3, 2, 2, 1]) - np.log(4) * (1 + second) / 2
    assert frame["mutual_information"][0] == pytest.approx(information, abs=1e-3)


def test_the_boundary_lies_behind_the_last_chosen_expert() -> None:
    logits = np.log([[0.4, 0.3, 0.2, 0.1], [0.1, 0.1, 0.1, 0.7]])
    boundary = metrics.router_entropy(trace_of([[0, 1], [3, 0]], num_experts=4, router_logits=logits))["boundary"]
    assert boundary[0] == pytest.approx((0.1 + 0.0) / 2, abs=1e-3)
    all_chosen = trace_of([[0, 1]], num_experts=2, router_logits=[[1.0, 0.0]])
    assert np.isnan(metrics.router_entropy(all_chosen)["boundary"][0])


def test_mutual_information_at_its_ends() -> None:
    alike = trace_of([[0], [0]], num_experts=2, router_logits=[[1.0, 0.0]] * 2)
    assert metrics.router_entropy(alike)["mutual_information"][0] == pytest.approx(0, abs=1e-12)
    sure = trace_of([[0], [1]], num_experts=2, router_logits=[[90.0, 0.0], [0.0, 90.0]])
    assert metrics.router_entropy(sure)["mutual_information"][0] == pytest.approx(np.log(2))


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
    assert frame[["boundary", "mutual_information"]].isna().all(axis=None)
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
    monkeypatch.setattr(decisions, "_CHUNK_TOKENS", 7)
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


def test_lift_is_against_the_mean_number_of_experts_where_that_varies() -> None:
    # 5 of 12 slots are used: 5/4 experts a token on average, 5/12 for each of three when even.
    trace = trace_of(
        [[0, 1, -1], [0, -1, -1], [0, -1, -1], [1, -1, -1]],
        num_experts=3,
        domain_ids=[0, 0, 1, 1],
        domains=["legal", "code"],
        varying_experts=True,
    )
    frame = metrics.domain_specialization(trace).set_index(["domain", "expert"])
    assert frame["lift"].tolist() == pytest.approx([1 / (5 / 12), 0.5 / (5 / 12), 0, 0.5 / (5 / 12), 0.5 / (5 / 12), 0])


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


def test_documents_of_one_source_count_as_one() -> None:
    """Twenty documents of two books that differ: two observations, not twenty."""
    documents = np.repeat(np.arange(20), 50)
    chosen = (documents % 2)[:, None]
    by_document = metrics.domain_specialization(trace_of(chosen, num_experts=2, document_ids=documents))
    by_source = metrics.domain_specialization(
        trace_of(chosen, num_experts=2, document_ids=documents, source_ids=documents % 2)
    )
    width = [frame.eval("high - low")[0] for frame in (by_document, by_source)]
    assert width[1] > 1.5 * width[0]
    one = trace_of(chosen, num_experts=2, document_ids=documents, source_ids=np.zeros(1000, int))
    assert metrics.domain_specialization(one)["low"].isna().all()


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
    other = renamed(trace, new_name)
    for measure in MEASURES:
        before, after = measure(trace), measure(other)
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
    for count in (expert_counts, domain_counts, domain_tokens, pair_counts, flow_counts):
        assert np.array_equal(count(trace.select(first)) + count(trace.select(~first)), count(trace)), count.__name__


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_blocks_add_up_to_the_domains(seed: int) -> None:
    trace = random_trace(seed)
    found = block_counts(trace)
    pairs = list(zip(found.source_ids.tolist(), found.domain_ids.tolist(), strict=True))
    assert pairs == sorted(set(zip(trace.source_ids.tolist(), trace.domain_ids.tolist(), strict=True)))
    for domain in range(3):
        own = found.domain_ids == domain
        assert np.array_equal(found.counts[:, own].sum(axis=1), domain_counts(trace)[:, domain])
        assert found.tokens[own].sum() == domain_tokens(trace)[domain]


def test_a_token_without_a_group_and_an_unused_slot_do_not_count() -> None:
    counts = grouped_counts(np.array([[[0, 1], [2, -1], [1, 2]]]), np.array([1, 0, -1], np.int16), (3, 3))
    assert counts.tolist() == [[[0, 0, 1], [1, 1, 0], [0, 0, 0]]]


def test_counting_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = random_trace(0, L=3)
    whole = [count(trace) for count in (expert_counts, pair_counts, flow_counts)]
    monkeypatch.setattr("moe_core.routing.trace.counts.CHUNK_TOKENS", 1)
    pieces = [count(trace) for count in (expert_counts, pair_counts, flow_counts)]  # of 25 tokens, 5 experts squared
    assert all(np.array_equal(a, b) for a, b in zip(whole, pieces, strict=True))


@pytest.mark.parametrize("together", [1, 7, 32_768])
def test_counting_by_groups_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    monkeypatch.setattr("moe_core.routing.trace.kernels.GROUPED_TOKENS", together)
    rng = np.random.default_rng(0)
    chosen_LTK, neighbours_T = rng.integers(-1, 5, (3, 200, 2)), np.repeat(np.arange(-1, 19), 10)
    for groups_T in (neighbours_T, rng.permutation(neighbours_T), np.full(200, -1)):
        expected_LGE = np.zeros((3, 20, 5), dtype=np.int64)
        for layer, token, slot in np.argwhere((chosen_LTK >= 0) & (groups_T >= 0)[:, None]):
            expected_LGE[layer, groups_T[token], chosen_LTK[layer, token, slot]] += 1
        assert np.array_equal(grouped_counts(chosen_LTK, groups_T, (20, 5)), expected_LGE)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), K=st.integers(1, 5), drop=st.sampled_from([0.0, 0.3, 1.0]))
def test_every_value_stays_in_its_documented_range(seed: int, K: int, drop: float) -> None:
    trace = random_trace(seed, K=K, drop=drop)
    E = trace.num_experts
    ranges = {"share": (0, 1), "load_imbalance": (1, E), "cv": (0, E), "dead_experts": (0, E)}
    ranges |= {"effective_experts": (1, E), "gini": (0, 1), "dropped_fraction": (0, 1), "router_entropy": (0, 1)}
    ranges |= {"min_violation": (0, 1), "utilisation": (0, 1), "oversubscribed": (0, 1), "top_mass": (0, 1)}
    ranges |= {"boundary": (0, 1), "mutual_information": (0, np.log(E))}
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


def test_the_busiest_and_the_unused_experts_are_named() -> None:
    counts = RoutingCounts.from_arrays([[10, 0, 10, 20], [0, 0, 0, 0], [0, 0, 0, 40]], top_k=1, layers=[1, 2, 5])
    assert extremes(metrics.expert_load(counts)) == (
        "Busiest, in times their even share: expert 3 of layer 5 (4.0 ×), expert 3 of layer 1 (2.0 ×), "
        "expert 0 of layer 1 (1.0 ×). Never chosen here: experts 1 of layer 1, 0 of layer 5, 1 of layer 5 and 1 more."
    )
