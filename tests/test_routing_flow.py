"""Flow from layer to layer: by hand, by brute force, and what independence must look like."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_support import random_trace, renamed, trace_of
from sklearn.metrics import confusion_matrix

from moe_core.routing import metrics
from moe_core.routing.trace.counts import flow_counts
from moe_core.routing.trace.kernels import MovedPairs, joint_counts


def test_by_hand() -> None:
    trace = trace_of([[[0], [0], [0], [1]], [[1], [1], [0], [1]]], num_experts=2, layers=[2, 5])
    frame = metrics.layer_flow(trace)
    assert frame[["layer", "next_layer"]].drop_duplicates().to_numpy().tolist() == [[2, 5]]
    assert frame[["expert", "next_expert"]].to_numpy().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert frame["tokens"].tolist() == [1, 2, 0, 1]
    assert frame["probability"].tolist() == pytest.approx([1 / 3, 2 / 3, 0, 1])
    assert frame["lift"].tolist() == pytest.approx([4 / 3, 8 / 9, 0, 4 / 3])


def test_unused_slots_and_experts_without_tokens() -> None:
    frame = metrics.layer_flow(trace_of([[[0, 1], [0, -1]], [[1, -1], [-1, -1]]], num_experts=3))
    assert frame["tokens"].tolist() == [0, 1, 0, 0, 1, 0, 0, 0, 0]
    assert frame["probability"].tolist()[:6] == [0, 1, 0, 0, 1, 0]
    assert frame["probability"][6:].isna().all()
    assert frame["lift"][[0, 2]].isna().all()  # nobody goes there
    assert frame["lift"][1] == 1


def test_one_layer_flows_nowhere() -> None:
    frame = metrics.layer_flow(trace_of([[0, 1]], num_experts=2))
    assert frame.empty
    assert frame.columns.tolist() == ["layer", "next_layer", "expert", "next_expert", "tokens", "probability", "lift"]


def test_with_one_slot_the_flow_is_scikit_learns_table() -> None:
    rng = np.random.default_rng(0)
    indices = rng.integers(0, 6, (3, 500, 1))
    flow = flow_counts(trace_of(indices, num_experts=6))
    for row in range(2):
        assert np.array_equal(flow[row], confusion_matrix(indices[row, :, 0], indices[row + 1, :, 0], labels=range(6)))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), K=st.integers(1, 4), drop=st.sampled_from([0.0, 0.3]))
def test_flow_is_that_of_brute_force(seed: int, K: int, drop: float) -> None:
    trace = random_trace(seed, L=3, K=K, drop=drop)
    expected = np.zeros((2, trace.num_experts, trace.num_experts), int)
    for row in range(2):
        here, there = trace.router_indices[row].tolist(), trace.router_indices[row + 1].tolist()
        for chosen, following in zip(here, there, strict=True):
            for i, j in itertools.product(chosen, following):
                if i >= 0 and j >= 0:
                    expected[row, i, j] += 1
    assert np.array_equal(flow_counts(trace), expected)
    frame = metrics.layer_flow(trace)
    sums = frame.dropna(subset="probability").groupby(["layer", "expert"])["probability"].sum()
    assert sums.to_numpy() == pytest.approx(1.0)
    # Weighted by its expert's tokens, the lift onto any next expert averages to 1.
    weight = frame.groupby(["layer", "expert"])["tokens"].transform("sum")
    known = frame["lift"].notna()
    total = (frame["lift"] * weight)[known].groupby([frame["layer"], frame["next_expert"]]).sum()
    assert (total / weight[known].groupby([frame["layer"], frame["next_expert"]]).sum()).to_numpy() == pytest.approx(1)


def test_layers_that_choose_independently_have_lift_one() -> None:
    rng = np.random.default_rng(0)
    trace = trace_of(np.argsort(rng.random((2, 40_000, 4)), axis=-1)[..., :2], num_experts=4)
    assert metrics.layer_flow(trace)["lift"].to_numpy() == pytest.approx(np.ones(16), abs=0.03)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_renaming_experts_renames_the_flow(seed: int) -> None:
    trace = random_trace(seed, L=3)
    new_name = np.random.default_rng(seed).permutation(trace.num_experts)
    assert np.array_equal(flow_counts(renamed(trace, new_name))[:, new_name[:, None], new_name], flow_counts(trace))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    E=st.integers(1, 9),
    K=st.integers(1, 4),
    T=st.sampled_from([0, 1, 2, 50, 40_000]),  # from some 33,000 on, counts do not fit into 16 bits
)
def test_moved_tokens_are_counted_as_tokens_that_were_copied(seed: int, E: int, K: int, T: int) -> None:
    rng = np.random.default_rng(seed)
    rows_KT, columns_KT = rng.integers(0, E + 1, (2, K, T))  # 0: an unused slot; an expert may stand in two slots
    place_T = rng.permutation(T)
    moved = MovedPairs(rows_KT, columns_KT, E)
    np.testing.assert_array_equal(moved.counts(place_T), joint_counts(rows_KT, columns_KT[:, place_T], E))
    np.testing.assert_array_equal(moved.counts(np.arange(T)), joint_counts(rows_KT, columns_KT, E))
