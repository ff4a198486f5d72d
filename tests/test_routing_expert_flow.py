"""Flow of one expert: by hand, against independence, and what is said of the ends of the model and of few tokens."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from moe_core.routing import metrics
from moe_core.routing.measures.against_chance import CHANCE
from moe_core.routing.measures.expert_flow import (
    Direction,
    expert_flow,
    expert_flow_verdict,
    strongest_streams,
)
from moe_core.routing.measures.flow import FLOW_FINDING, layer_flow_test
from tests.routing_support import random_trace, renamed, trace_of


def between(layer: int, next_layer: int, verdict: str = FLOW_FINDING.clearly) -> pd.DataFrame:
    return pd.DataFrame({"layer": [layer], "next_layer": [next_layer], "verdict": [verdict]})


def by_hand(times: int = 1) -> pd.DataFrame:
    """Of four tokens three choose expert 0 and one expert 1 of layer 2; two and one of these go to expert 1 of 5."""
    return metrics.layer_flow(
        trace_of([[[0], [0], [0], [1]] * times, [[1], [1], [0], [1]] * times], num_experts=2, layers=[2, 5])
    )


def test_where_tokens_go_by_hand() -> None:
    frame = expert_flow(by_hand(), between(2, 5), 2, 0, "to")
    # A quarter of all go to expert 0, three quarters to expert 1: of its three tokens .75 and 2.25 are expected.
    assert frame["layer"].tolist() == [5, 5]
    assert frame["expert"].tolist() == [0, 1]  # the one beyond independence stands first
    assert frame["tokens"].tolist() == [1, 2]
    assert frame["share"].tolist() == pytest.approx([1 / 3, 2 / 3])
    assert frame["expected"].tolist() == pytest.approx([1 / 4, 3 / 4])
    assert frame["lift"].tolist() == pytest.approx([4 / 3, 8 / 9])
    assert frame["uncertain"].all()  # fewer than 5 are expected


def test_where_tokens_come_from_by_hand() -> None:
    frame = expert_flow(by_hand(), between(2, 5), 5, 1, "from")
    assert frame["layer"].tolist() == [2, 2]
    assert frame["expert"].tolist() == [1, 0]
    assert frame["share"].tolist() == pytest.approx([1 / 3, 2 / 3])
    assert frame["expected"].tolist() == pytest.approx([1 / 4, 3 / 4])


def test_nothing_is_called_certain_where_the_layers_are_not_told_from_independent_ones() -> None:
    many = by_hand(times=20)
    found = expert_flow(many, between(2, 5), 2, 0, "to")
    assert not found["uncertain"].any()
    assert expert_flow_verdict(found, "to") == (
        "It sends most beyond independence to expert 0 of layer 5: 33 % of its tokens, 1.3 times the 25 % that "
        "independence gives."
    )
    chance = expert_flow(many, between(2, 5, CHANCE), 2, 0, "to")
    assert chance["uncertain"].all()
    assert expert_flow_verdict(chance, "to").startswith("Not distinguishable from chance")
    assert strongest_streams(many, between(2, 5, CHANCE)).empty
    streams = strongest_streams(many, between(2, 5))
    assert streams[["expert", "next_expert"]].to_numpy().tolist() == [[0, 0], [1, 1]]
    assert len(strongest_streams(many, between(2, 5), 1)) == 1


def test_the_ends_of_the_model_and_experts_without_tokens_are_said() -> None:
    flow = metrics.layer_flow(trace_of([[[0], [0]], [[1], [1]]], num_experts=3))
    assert expert_flow_verdict(expert_flow(flow, between(0, 1), 0, 0, "from"), "from") == (
        "There is no MoE layer before this one."
    )
    assert expert_flow_verdict(expert_flow(flow, between(0, 1), 0, 2, "to"), "to") == "No token chose it."


@pytest.mark.parametrize("direction", ["from", "to"])
def test_shares_and_what_is_expected_add_up_and_names_do_not_matter(direction: Direction) -> None:
    trace, new_name = random_trace(3, L=3, T=300), np.array([3, 0, 4, 1, 2])
    flow, moved = metrics.layer_flow(trace), metrics.layer_flow(renamed(trace, new_name))
    test = layer_flow_test(trace, permutations=10)
    for expert in range(5):
        frame = expert_flow(flow, test, 1, expert, direction)
        assert frame["share"].sum() == pytest.approx(1)
        assert frame["expected"].sum() == pytest.approx(1)
        other = expert_flow(moved, test, 1, int(new_name[expert]), direction)
        assert other["share"].tolist() == pytest.approx(frame["share"].tolist())
        assert other["expert"].tolist() == new_name[frame["expert"]].tolist()
