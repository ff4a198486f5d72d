"""Experts chosen together: all pairs of slots, against the answers of hand and of brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_support import random_trace, renamed, trace_of

from moe_core.routing import RoutingTrace, metrics
from moe_core.routing.trace.counts import expert_counts, pair_counts


def test_by_hand() -> None:
    frame = metrics.coactivation(trace_of([[0, 1], [1, 0], [0, 2], [0, -1]], num_experts=4))
    cells = frame.set_index(["expert_i", "expert_j"])
    assert len(frame) == 12
    assert cells.loc[(0, 1), ["tokens", "probability", "lift"]].tolist() == [2, 0.5, pytest.approx(2 * 4 / (4 * 2))]
    assert cells.loc[(1, 0), ["tokens", "probability", "lift"]].tolist() == [2, 1.0, 1.0]
    assert cells.loc[(2, 0), ["tokens", "probability"]].tolist() == [1, 1.0]
    assert cells.loc[(1, 2), ["tokens", "probability", "lift"]].tolist() == [0, 0.0, 0.0]
    assert np.isnan(cells.loc[(3, 0), "probability"])  # nobody chose 3
    assert cells.loc[(0, 3), "probability"] == 0
    assert np.isnan(cells.loc[(0, 3), "lift"])


def test_every_pair_of_slots_counts_not_only_neighbouring_ranks() -> None:
    cells = metrics.coactivation(trace_of([[0, 1, 2]] * 5, num_experts=3)).set_index(["expert_i", "expert_j"])
    assert cells["tokens"].tolist() == [5] * 6
    assert cells.loc[(0, 2), "probability"] == 1


@pytest.mark.parametrize(("K", "E"), [(8, 64), (2, 8)])
def test_uniform_routing_has_the_stated_chance(K: int, E: int) -> None:
    """8 of 64: 7/63 = 11.11 %; counting adjacent ranks only would give 2.78 %."""
    rng = np.random.default_rng(0)
    frame = metrics.coactivation(trace_of(np.argsort(rng.random((8000, E)), axis=1)[:, :K], num_experts=E))
    assert frame["probability"].mean() == pytest.approx((K - 1) / (E - 1), rel=0.01)
    assert frame["lift"].mean() == pytest.approx((K - 1) * E / ((E - 1) * K), rel=0.01)


def test_one_slot_pairs_nothing_and_one_expert_has_no_other() -> None:
    frame = metrics.coactivation(trace_of([[0], [1]], num_experts=2))
    assert frame[["tokens", "lift"]].to_numpy().tolist() == [[0, 0], [0, 0]]
    assert metrics.coactivation(trace_of([[0]], num_experts=1)).empty


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), K=st.integers(1, 5), drop=st.sampled_from([0.0, 0.3, 1.0]))
def test_pairs_are_those_of_brute_force(seed: int, K: int, drop: float) -> None:
    trace = random_trace(seed, K=K, drop=drop)
    expected = np.zeros((trace.num_layers, trace.num_experts, trace.num_experts), int)
    for row, indices_TK in enumerate(trace.router_indices.tolist()):
        for chosen in indices_TK:
            for i, j in itertools.product([e for e in chosen if e >= 0], repeat=2):
                expected[row, i, j] += 1
    counts = pair_counts(trace)
    assert np.array_equal(counts, expected)
    assert np.array_equal(np.diagonal(counts, axis1=1, axis2=2), expert_counts(trace))
    frame = metrics.coactivation(trace)
    assert frame["tokens"].sum() == expected.sum() - expert_counts(trace).sum()
    assert frame["probability"].dropna().between(0, 1).all()
    assert (frame["lift"].dropna() >= 0).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_with_every_slot_used_the_probabilities_of_a_row_sum_to_the_other_slots(seed: int) -> None:
    frame = metrics.coactivation(random_trace(seed, K=3, drop=0)).dropna()
    assert frame.groupby(["layer", "expert_i"])["probability"].sum().to_numpy() == pytest.approx(2.0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_renaming_experts_and_reordering_slots_changes_nothing_else(seed: int) -> None:
    trace = random_trace(seed, K=3)
    new_name = np.random.default_rng(seed).permutation(trace.num_experts)
    counts = pair_counts(renamed(trace, new_name))
    assert np.array_equal(counts[:, new_name[:, None], new_name], pair_counts(trace))
    turned = RoutingTrace.from_arrays(
        router_indices=trace.router_indices[..., ::-1],
        router_scores=trace.router_scores[..., ::-1],
        num_experts=trace.num_experts,
        token_ids=trace.token_ids,
    )
    assert np.array_equal(pair_counts(turned), pair_counts(trace))
