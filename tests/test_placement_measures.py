"""Coverage, caches and the load of GPUs: by hand, against plain simulations, and honest where there is nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from routing_support import random_experts, renamed, trace_of
from routing_support import random_trace as small_trace

from moe_core.routing import Group, RoutingCounts, RoutingTrace
from moe_core.routing.calibration import random_trace
from moe_core.routing.measures import busiest, caches, gpu_load
from moe_core.routing.placement.balancer import Fleet
from moe_core.routing.statistics.halves import ways


def test_coverage_by_hand() -> None:
    """Four sources, alike in pairs: whichever two choose, the others are counted by their order."""
    counts = np.array([[[6, 3, 1]] * 2 + [[2, 7, 1]] * 2])  # [L,G,E]
    routing = RoutingCounts.from_arrays(
        counts[None], top_k=1, tokens=[[10] * 4], groups=[Group("a", str(g)) for g in range(4)]
    )
    frame = busiest.busiest_experts(routing)
    expected = []
    for chooses, counted in ways(np.zeros(4, dtype=np.int64)):
        order = np.argsort(-counts[0, chooses].sum(axis=0), kind="stable")
        expected.append(np.cumsum(counts[0, counted].sum(axis=0)[order]) / 20)
    assert frame["share"].tolist() == pytest.approx(np.mean(expected, axis=0).tolist())
    assert frame["counted"].tolist() == pytest.approx([0.5, 0.9, 1.0])
    assert frame["even"].tolist() == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert frame["low"].isna().all()  # four sources tell little of others
    assert "cannot be told" in busiest.busiest_verdict(frame)


def test_experts_for_a_part_of_the_work() -> None:
    frame = busiest.busiest_experts(random_trace(0, skew=2.0, layers=1))
    own = frame["share"].to_numpy()
    row = busiest.experts_for(frame, 0.8).iloc[0]
    assert own[int(row["experts"]) - 1] >= 0.8 > own[int(row["experts"]) - 2]
    assert row["low"] <= row["experts"] <= row["high"]
    assert row["even"] == 7


def test_coverage_and_gpu_load_do_not_depend_on_names_and_halves_add_up() -> None:
    trace = small_trace(0, T=400, E=6)
    other = renamed(trace, np.random.default_rng(1).permutation(6))
    assert np.allclose(
        busiest.busiest_experts(trace)["counted"], busiest.busiest_experts(other)["counted"]
    )  # where experts tie, which is first depends on their numbers
    parts = [trace.select(np.isin(trace.source_ids, ids)).counts() for ids in ((0, 2), (1, 3))]
    whole = busiest.busiest_experts(parts[0] + parts[1])
    assert np.allclose(whole["share"], busiest.busiest_experts(trace.counts())["share"])


def test_weights_are_covered_too() -> None:
    trace = trace_of([[[0, 1], [0, 1], [0, 2]]], num_experts=3, document_ids=[0, 1, 2])
    frame = busiest.busiest_experts(trace)
    assert frame["weight_share"].tolist() == pytest.approx([0.5, 5 / 6, 1.0])
    assert busiest.busiest_experts(trace.counts())["weight_share"].isna().all()
    assert np.allclose(
        busiest.busiest_experts(trace.counts(extras=("weights",)))["weight_share"], frame["weight_share"]
    )


def simulated(trace: RoutingTrace, layer: int, size: int) -> float:
    """Hit rate of a cache that drops what was used longest ago, one token after the other."""
    kept: list[int] = []  # the latest last
    hits = asked = 0
    for chosen in trace.router_indices[layer].tolist():
        used = [expert for expert in chosen if expert >= 0]
        hits += sum(expert in kept[-size:] for expert in used)
        asked += len(used)
        for expert in used:
            kept = [other for other in kept if other != expert] + [expert]
    return hits / asked


@pytest.mark.parametrize("drop", [0.0, 0.2])
def test_a_cache_has_what_a_plain_simulation_has(drop: float, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = small_trace(3, L=2, T=300, K=3, E=9, drop=drop)
    frame = caches.expert_cache(trace)
    for row in frame.itertuples():
        assert row.lru == pytest.approx(simulated(trace, row.layer, row.experts)), row
    monkeypatch.setattr(caches, "MOST_TIME", 50)  # many chunks
    assert np.allclose(caches.expert_cache(trace)["lru"], frame["lru"])


def test_a_cache_goes_on_over_the_parts_of_a_stored_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = replace(small_trace(4, T=400), router_logits=None)
    trace.save(tmp_path / "x.parquet")
    monkeypatch.setattr("moe_core.routing.trace.trace.PART_TOKENS", 60)
    stored = RoutingTrace.open(tmp_path / "x.parquet")
    assert len(list(stored.parts())) > 1
    assert np.allclose(caches.expert_cache(stored)["lru"], caches.expert_cache(trace)["lru"])


def test_even_and_independent_choices_hit_by_the_size_of_the_cache_and_order_is_worth_nothing() -> None:
    chosen = random_experts(np.random.default_rng(0), (1, 6000), 2, 8)
    frame = caches.expert_cache(trace_of(chosen, num_experts=8, document_ids=np.arange(6000) // 100))
    assert np.abs(frame["lru"] - frame["even"]).max() < 0.02
    assert np.abs(frame["static"] - frame["even"]).max() < 0.02
    assert np.abs(frame["shuffled"] - frame["even"]).max() < 0.02
    runs = np.repeat(chosen[:, ::10], 10, axis=1)
    again = caches.expert_cache(trace_of(runs, num_experts=8, document_ids=np.arange(6000) // 100))
    assert (again["lru"] - again["shuffled"])[1] > 0.5
    assert "order of the tokens is worth +" in caches.cache_verdict(again, 2)


def test_where_there_is_nothing_little_is_found_and_nothing_is_promised() -> None:
    """More on many seeds in docs/decisions/0044: at most one in twenty is told apart from an even router."""
    found = better = 0
    for seed in range(30):
        trace = random_trace(seed, layers=2)
        found += (busiest.busiest_experts(trace)["verdict"] != busiest.EVEN).any()
        better += gpu_load.summary(gpu_load.gpu_load(trace, Fleet(8, 4, 8))).low > 0
    assert found <= 4
    assert better <= 4


def test_what_is_there_is_found() -> None:
    trace = random_trace(1, skew=1.5, documents=40, layers=2)
    frame = busiest.busiest_experts(trace)
    assert set(frame["verdict"]) == {busiest.MORE}
    load = gpu_load.gpu_load(trace, Fleet(8, 4, 8))
    assert gpu_load.placement_verdict(load).startswith("Placement evens the busiest GPU out from ")
    at = gpu_load.summary(load)
    assert 1 <= at.after_seen <= at.after < at.before
    counts = gpu_load.gpu_load(trace.counts(by="domain"), Fleet(8, 4, 8))
    assert "cannot be told from counts that keep no sources apart" in gpu_load.placement_verdict(counts)
    few = trace.select(trace.document_ids < 4)
    assert "cannot be told from 4 sources" in gpu_load.placement_verdict(gpu_load.gpu_load(few, Fleet(8, 4, 8)))


def test_one_domain_is_placed_by_its_own_text() -> None:
    trace = random_trace(2, planted="domain_nmi", documents=40, layers=2)
    own = busiest.busiest_experts(trace, "domain 0")
    assert own["tokens"].iloc[0] == (trace.domain_ids == 0).sum()
    counts = trace.counts().of_domain("domain 0")
    assert np.allclose(own["share"], busiest.busiest_experts(counts)["share"])
    placed = [
        gpu_load.place_experts(trace, Fleet(8, 4, 8), name).physical_to_logical
        for name in (None, "domain 0", "domain 1")
    ]
    assert not np.array_equal(placed[1], placed[2])
