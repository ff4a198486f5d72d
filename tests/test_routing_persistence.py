"""Persistence of experts over neighbouring tokens, and what independent tokens with the same load give."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.routing import RoutingTrace, metrics
from moe_core.routing.measures.chance import chance_of_sharing
from moe_core.routing.measures.persistence import first_choice, shared_experts
from moe_core.routing.measures.tokens import consecutive
from moe_core.routing.trace import trace as trace_file


def trace_of(indices: Any, *, num_experts: int, scores: Any = None, **fields: Any) -> RoutingTrace:
    """A trace whose slots are in the order of their weight, unless `scores` says otherwise."""
    chosen = np.asarray(indices)
    K = chosen.shape[-1]
    weights = np.where(chosen < 0, 0.0, np.arange(K, 0, -1) / K) if scores is None else scores
    fields.setdefault("token_ids", np.zeros(chosen.shape[-2], int))
    return RoutingTrace.from_arrays(router_indices=chosen, router_scores=weights, num_experts=num_experts, **fields)


def random_trace(seed: int, *, L: int = 2, T: int = 80, K: int = 2, E: int = 5, drop: float = 0.1) -> RoutingTrace:
    rng = np.random.default_rng(seed)
    chosen = np.argsort(rng.gumbel(size=(L, T, E)) + np.arange(E) / 2, axis=-1)[..., :K]
    used = rng.random((L, T, K)) >= drop
    return trace_of(
        np.where(used, chosen, -1),
        scores=np.where(used, rng.random((L, T, K)), 0.0),
        num_experts=E,
        document_ids=np.sort(rng.integers(0, 8, T)),
    )


def test_persistence_by_hand() -> None:
    # Documents: [0,1] [0,2] [2,0] | [2,1] [3,1]
    trace = trace_of([[0, 1], [0, 2], [2, 0], [2, 1], [3, 1]], num_experts=4, document_ids=[1, 1, 1, 2, 2])
    row = metrics.persistence(trace).iloc[0]
    assert row["pairs"] == 3
    assert row["first"] == pytest.approx(1 / 3)  # only 0 -> 0: the border between the documents is no pair
    assert row["any"] == pytest.approx(1)
    assert row["chance_first"] == pytest.approx((2 / 5) ** 2 + (2 / 5) ** 2 + (1 / 5) ** 2)
    assert row["uniform_first"] == pytest.approx(1 / 4)
    assert row["uniform_any"] == pytest.approx(1 - 1 / 6)


def test_the_first_choice_has_the_largest_score_whatever_its_slot() -> None:
    trace = trace_of(
        [[0, 1], [1, 0], [2, 1], [-1, 3], [-1, -1], [3, 2]],
        scores=[[0.2, 0.8], [0.9, 0.1], [0.5, 0.5], [0, 0.1], [0, 0], [-0.2, -0.1]],
        num_experts=4,
    )
    assert first_choice(trace, 0).tolist() == [1, 1, 2, 3, -1, 2]


def test_tokens_without_an_expert_make_no_pair() -> None:
    trace = trace_of([[0], [-1], [-1], [1], [1]], num_experts=2, document_ids=np.zeros(5, int))
    row = metrics.persistence(trace).iloc[0]
    assert (row["pairs"], row["first"], row["any"]) == (1, 1, 1)
    assert row["chance_first"] == pytest.approx(5 / 9)
    silent = metrics.persistence(trace_of([[-1], [-1]], num_experts=2, document_ids=[0, 0])).iloc[0]
    assert silent["pairs"] == 0
    assert np.isnan(silent[["first", "any", "chance_first", "chance_any"]].astype(float)).all()


def test_pairs_are_of_consecutive_positions_in_whatever_order_the_rows_are() -> None:
    trace = trace_of([[0]] * 6, num_experts=2, document_ids=[3, -2, 3, -2, 3, 7], positions=[0, 1, 1, 0, 3, 2])
    earlier, later = consecutive(trace)
    assert sorted(zip(earlier.tolist(), later.tolist(), strict=True)) == [(0, 2), (3, 1)]


def test_an_expert_that_always_stays_and_one_that_never_does() -> None:
    document = np.zeros(12, int)
    stay = metrics.persistence(trace_of([[1, 2]] * 12, num_experts=4, document_ids=document)).iloc[0]
    assert stay[["first", "any", "chance_first", "chance_any"]].tolist() == [1, 1, 1, 1]
    leave = metrics.persistence(trace_of([[0, 1], [2, 3]] * 6, num_experts=4, document_ids=document)).iloc[0]
    assert leave[["first", "any"]].tolist() == [0, 0]
    assert leave["chance_any"] == pytest.approx(leave["uniform_any"])


@pytest.mark.parametrize(("E", "K"), [(4, 1), (8, 2), (64, 8), (5, 4), (6, 6)])
def test_even_load_has_the_uniform_chance(E: int, K: int) -> None:
    even = (np.arange(E)[:, None] + np.arange(K)) % E
    row = metrics.persistence(trace_of(even, num_experts=E)).iloc[0]
    assert row["pairs"] == 0
    assert row["chance_first"] == pytest.approx(row["uniform_first"])
    assert row["chance_any"] == pytest.approx(row["uniform_any"])


def test_uneven_load_alone_reaches_its_chance_but_not_more() -> None:
    rng = np.random.default_rng(0)
    indices = np.argsort(rng.gumbel(size=(2, 40_000, 8)) + np.arange(8) / 2, axis=-1)[..., ::-1][..., :3]
    for row in metrics.persistence(trace_of(indices, num_experts=8, document_ids=np.zeros(40_000, int))).itertuples():
        assert row.chance_first > 1.5 * row.uniform_first
        assert row.first == pytest.approx(row.chance_first, abs=0.01)
        assert row.any == pytest.approx(row.chance_any, abs=0.01)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), K=st.integers(1, 3))
def test_the_chance_of_sharing_agrees_with_listing_all_sets(seed: int, K: int) -> None:
    """Sets drawn in proportion to the product of known weights; tokens of two sizes where K > 1."""
    E, w = 6, np.random.default_rng(seed).uniform(0.2, 3, 6)
    sizes = np.zeros(K + 1)
    sizes[1] += 0.3
    sizes[K] += 0.7
    sets, chances = [], []
    for size in sorted({1, K}):
        own = list(combinations(range(E), size))
        products = np.array([np.prod(w[list(s)]) for s in own])
        sets += own
        chances += (sizes[size] * products / products.sum()).tolist()
    chose = np.array([sum(p for s, p in zip(sets, chances, strict=True) if e in s) for e in range(E)])
    expected = sum(
        p * q for s, p in zip(sets, chances, strict=True) for r, q in zip(sets, chances, strict=True) if {*s} & {*r}
    )
    assert chance_of_sharing(chose, sizes) == pytest.approx(expected, abs=1e-6)
    if K == 1:
        assert expected == pytest.approx((chose**2).sum())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), K=st.integers(1, 5), drop=st.sampled_from([0.0, 0.3, 1.0]))
def test_persistence_agrees_with_a_plain_loop(seed: int, K: int, drop: float) -> None:
    trace = random_trace(seed, K=K, drop=drop)
    for row, found in enumerate(metrics.persistence(trace).itertuples()):
        first = shared = pairs = 0
        for t in range(trace.num_tokens - 1):
            sets = [{int(e) for e in trace.router_indices[row, i] if e >= 0} for i in (t, t + 1)]
            if trace.document_ids[t] != trace.document_ids[t + 1] or not all(sets):
                continue
            best = [
                max(
                    (float(s), -k, int(e))
                    for k, (e, s) in enumerate(
                        zip(trace.router_indices[row, i], trace.router_scores[row, i], strict=True)
                    )
                    if e >= 0
                )[2]
                for i in (t, t + 1)
            ]
            pairs += 1
            first += best[0] == best[1]
            shared += bool(sets[0] & sets[1])
        assert found.pairs == pairs
        if pairs:
            assert (found.first, found.any) == (pytest.approx(first / pairs), pytest.approx(shared / pairs))
            assert found.first <= found.any
            assert 0 < found.chance_first <= 1
            assert 0 < found.chance_any <= 1


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_renaming_experts_changes_nothing(seed: int) -> None:
    trace = random_trace(seed)
    new_name = np.random.default_rng(seed).permutation(5)
    other = trace_of(
        np.where(trace.router_indices < 0, -1, new_name[trace.router_indices]),
        scores=trace.router_scores,
        num_experts=5,
        document_ids=trace.document_ids,
    )
    pd.testing.assert_frame_equal(metrics.persistence(trace), metrics.persistence(other), rtol=1e-7)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), cut=st.integers(0, 7))
def test_counts_of_two_parts_cut_at_a_document_add_up(seed: int, cut: int) -> None:
    trace = random_trace(seed)
    first = trace.document_ids <= cut
    if first.all() or not first.any():
        return
    whole, *parts = (metrics.persistence(t) for t in (trace, trace.select(first), trace.select(~first)))
    assert (parts[0]["pairs"] + parts[1]["pairs"]).tolist() == whole["pairs"].tolist()
    for name in ("first", "any"):
        agreeing = [(frame[name] * frame["pairs"]).fillna(0.0) for frame in (*parts, whole)]
        assert (agreeing[0] + agreeing[1]).to_numpy() == pytest.approx(agreeing[2].to_numpy())


def test_a_trace_on_disk_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = random_trace(1)
    trace.save(tmp_path / "t.parquet")
    monkeypatch.setattr(trace_file, "PART_TOKENS", 20)
    opened = RoutingTrace.open(tmp_path / "t.parquet")
    assert len(list(opened.parts())) > 2
    pd.testing.assert_frame_equal(metrics.persistence(opened), metrics.persistence(trace))


def test_shared_experts_by_hand() -> None:
    one, other = np.array([[0, 1], [2, -1], [-1, -1]]), np.array([[1, 0, 3], [-1, 2, 1], [-1, -1, -1]])
    assert shared_experts(one, other).tolist() == [2, 1, 0]
