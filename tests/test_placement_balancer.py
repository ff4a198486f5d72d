"""Replicas and GPUs of experts: as published, valid for any load, near the optimum; and files that engines take."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placement_support import read_as_sglang, read_as_tensorrt_llm

from moe_core.errors import UsageError
from moe_core.routing.placement.balancer import Fleet, balance, default_fleet, in_order
from moe_core.routing.placement.engine_files import sglang_json, tensorrt_llm_yaml

PUBLISHED_LOAD = np.array(
    [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ]
)
PUBLISHED = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]


def test_the_published_example_comes_out() -> None:
    placed = balance(PUBLISHED_LOAD, Fleet(num_experts=12, gpus=8, slots=16, nodes=2, groups=4))
    assert placed.physical_to_logical.tolist() == PUBLISHED
    assert placed.replicas[0].tolist() == [1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 2, 1]
    assert placed.logical_to_physical[0, 5].tolist() == [0, 2]
    assert placed.logical_to_physical[0, 0].tolist() == [12, -1]


@st.composite
def fleets(draw: st.DrawFn) -> tuple[Fleet, np.ndarray]:
    nodes = draw(st.sampled_from([1, 2, 3]))
    gpus, groups = nodes * draw(st.integers(1, 3)), draw(st.sampled_from([1, nodes, 2 * nodes]))
    experts = groups * nodes * draw(st.integers(1, 3))
    slots = -(-experts // gpus) * gpus + gpus * draw(st.integers(0, 2))
    load = draw(st.lists(st.integers(0, 1000), min_size=2 * experts, max_size=2 * experts))
    return Fleet(experts, gpus, slots, nodes, groups), np.array(load).reshape(2, experts)


@settings(max_examples=60)
@given(fleets())
def test_every_expert_is_placed_as_often_as_it_says_and_slots_are_full(given_fleet: tuple[Fleet, np.ndarray]) -> None:
    fleet, load = given_fleet
    placed = balance(load, fleet)
    assert placed.physical_to_logical.shape == (2, fleet.slots)
    for layer in range(2):
        row = placed.physical_to_logical[layer]
        counted = np.bincount(row, minlength=fleet.num_experts)
        assert counted.min() >= 1
        assert counted.tolist() == placed.replicas[layer].tolist()
        for expert in range(fleet.num_experts):
            own = placed.logical_to_physical[layer, expert]
            assert sorted(own[own >= 0].tolist()) == np.flatnonzero(row == expert).tolist()
        if fleet.is_hierarchical:  # a group stays within its node
            group, node = (
                row // (fleet.num_experts // fleet.groups),
                np.arange(fleet.slots) * fleet.nodes // fleet.slots,
            )
            assert all(len(set(node[group == g])) == 1 for g in range(fleet.groups))
    per_gpu = placed.gpu_load(load)
    assert per_gpu.sum(axis=1) == pytest.approx(load.sum(axis=1))
    assert (per_gpu.max(axis=1) >= per_gpu.mean(axis=1) - 1e-9).all()


def test_on_tiny_cases_the_busiest_gpu_is_near_the_optimum() -> None:
    """Heaviest first, to the lightest with room, has at most 4/3 of the optimum where packs need not be full (Graham
    1969); on packs of equal number no bound is that small, but random loads stay under it."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        load = rng.gamma(1.0, 100.0, size=(1, 6))
        fleet = Fleet(6, 3, 6)
        best = min(max(load[0, list(order)].reshape(3, 2).sum(axis=1)) for order in permutations(range(6)))
        found = balance(load, fleet).gpu_load(load).max()
        assert best - 1e-3 <= found <= 4 / 3 * best
        assert found <= in_order(1, fleet).gpu_load(load).max() * 4 / 3


def test_more_slots_never_make_the_most_loaded_replica_busier() -> None:
    most = [
        (PUBLISHED_LOAD / balance(PUBLISHED_LOAD, Fleet(12, 4, slots)).replicas).max(axis=1)
        for slots in (12, 16, 20, 24)
    ]
    assert (np.diff(most, axis=0) <= 0).all()


@pytest.mark.parametrize(
    ("fleet", "words"),
    [
        ({"gpus": 8, "slots": 12}, "12 physical experts on 8 GPUs; expected a multiple, such as 16"),
        ({"gpus": 4, "slots": 8}, "8 physical experts; expected 12"),
        ({"gpus": 3, "slots": 12, "nodes": 2}, "3 GPUs on 2 nodes"),
        ({"gpus": 4, "slots": 12, "groups": 5}, "12 experts in 5 groups"),
        ({"gpus": 0, "slots": 12}, "gpus is 0"),
    ],
)
def test_what_cannot_be_dealt_evenly_is_refused(fleet: dict[str, int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Fleet(num_experts=12, **fleet)


def test_engines_take_the_files_and_find_every_expert_where_it_was_placed() -> None:
    fleet, layers = Fleet(12, 8, 16, 2, 4), [1, 3]  # the first layer is dense, and so is the third
    placed = balance(PUBLISHED_LOAD, fleet)
    rows = read_as_sglang(
        sglang_json(placed, layers, model_layers=5), num_experts=12, redundant=4, ep_size=8, hidden_layers=5
    )
    assert [rows[1], rows[3]] == PUBLISHED
    assert rows[0] == rows[2] == rows[4] == [*range(12), 0, 1, 2, 3]
    text = tensorrt_llm_yaml(placed, layers)
    assert read_as_tensorrt_llm(text, num_experts=12, ep_size=8, moe_layers=layers) == dict(
        zip(layers, PUBLISHED, strict=True)
    )
    with pytest.raises(UsageError, match="the model has 3 layers, and layer 3 has experts"):
        sglang_json(placed, layers, model_layers=3)


def test_the_default_fleet_has_a_slot_for_every_expert_and_as_many_on_each_gpu() -> None:
    assert default_fleet(32).slots == 32
    assert (default_fleet(12).gpus, default_fleet(12).slots) == (6, 12)
    assert default_fleet(12, 8).slots == 16
    assert default_fleet(60, nodes=3).gpus == 6
