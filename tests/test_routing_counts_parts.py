"""Parts of counts: some layers, one domain, fewer steps; and pairs held against even routing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.errors import TraceError, UsageError
from moe_core.figures.experts import layer_load_figure
from moe_core.figures.measures import chance_figure
from moe_core.routing import RoutingCounts, baselines, metrics
from moe_core.routing.measures.coactivation import coactivation_pairs, pairs_as_counted
from moe_core.routing.measures.domains import domain_cell
from moe_core.routing.measures.registry import DOMAIN_NMI
from moe_core.routing.trace.groups import Group
from tests.routing_support import random_trace, trace_of

GROUPS = [Group("law", "a"), Group("code", "b"), Group("law", "c")]


def steps_of(number: int) -> RoutingCounts:
    """2 layers of 3 experts, one for each token, in three groups."""
    counts = np.random.default_rng(number).multinomial(5, [1 / 3] * 3, size=(number, 2, 3))
    return RoutingCounts.from_arrays(counts, top_k=1, groups=GROUPS, steps=[2 * s + 1 for s in range(number)])


@settings(max_examples=30)
@given(number=st.integers(1, 40), most=st.integers(1, 50))
def test_joined_steps_hold_the_same_counts_in_their_order(number: int, most: int) -> None:
    counts = steps_of(number)
    joined = counts.joined(most)
    assert len(joined.steps) == min(number, most)
    assert joined.steps[-1] == counts.steps[-1]
    assert set(joined.steps) <= set(counts.steps)
    assert joined.total() == counts.total()
    assert (joined is counts) == (most >= number)
    up_to = counts.steps.index(joined.steps[0]) + 1
    assert np.array_equal(joined.tokens_per_expert[0], counts.tokens_per_expert[:up_to].sum(axis=0))


def test_domains_and_layers_are_parts_of_the_whole() -> None:
    counts = steps_of(4)
    law, code = counts.of_domain("law"), counts.of_domain("code")
    assert law.groups == [GROUPS[0], GROUPS[2]]
    assert law.domains == ["law"]
    assert law + code == counts
    assert counts.of_layers([1]).layers == [1]
    assert np.array_equal(counts.of_layers([1]).tokens_per_expert[:, 0], counts.tokens_per_expert[:, 1])
    with pytest.raises(TraceError, match="'news' is not in these counts"):
        counts.of_domain("news")
    with pytest.raises(TraceError, match="layer 7"):
        counts.of_layers([7])


def test_pairs_of_even_routing_are_as_often_as_by_even_routing_whatever_the_unit() -> None:
    even = {"pairs": [[[6, 3, 3], [3, 6, 3], [3, 3, 6]]]}
    for top_k in (2, None):
        frame = pairs_as_counted(RoutingCounts.from_arrays([[6, 6, 6]], top_k=top_k, extras=even))
        assert frame["lift_over_chance"].tolist() == pytest.approx([1.0, 1.0, 1.0])
        assert frame["uncertain"].all()
    team = {"pairs": [[[6, 6, 0, 0], [6, 6, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]]}
    frame = pairs_as_counted(RoutingCounts.from_arrays([[6, 6, 0, 0]], top_k=2, extras=team))
    # N_ij (E-1) sum N / (N_i N_j E (K-1)) by hand: these loads alone would not make the pair certain.
    assert frame["lift_over_chance"].iloc[0] == pytest.approx(6 * 3 * 12 / (6 * 6 * 4 * 1))
    assert frame["lift_over_chance"].iloc[1:].isna().all()


def test_pairs_as_counted_rank_planted_teams_as_the_test_against_chance_does() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 3, 600) * 2
    second = np.where(rng.random(600) < 0.7, first + 1, (first + rng.integers(2, 6, 600)) % 6)
    trace = trace_of(np.stack([first, second], axis=1), num_experts=6, document_ids=np.arange(600) // 25)
    counted, tested = pairs_as_counted(trace.counts(extras=("pairs",))), coactivation_pairs(trace)
    assert counted[["expert_i", "expert_j", "tokens"]].equals(tested[["expert_i", "expert_j", "tokens"]])
    teams = [(0, 1), (2, 3), (4, 5)]
    for frame in (counted, tested):
        best = frame.nlargest(3, "lift_over_chance")
        assert sorted(zip(best["expert_i"], best["expert_j"], strict=True)) == teams


def test_an_expert_stands_among_those_of_its_layer_by_load() -> None:
    load = metrics.expert_load(RoutingCounts.from_arrays([[10, 30, 0, 40]], top_k=1, layers=[2]))
    figure = layer_load_figure(load, 2, 1)
    assert (
        figure.verdict == "Expert 1 is number 2 of 4 in layer 2 by load: 38 % of the choices, 1.5 times its even share."
    )
    assert figure.frame["expert"].tolist() == [3, 1, 0, 2]
    with pytest.raises(UsageError, match="expert 4 of layer 2"):
        layer_load_figure(load, 2, 4)
    whole = random_trace(0)
    assert layer_load_figure(metrics.expert_load(whole), 1, 0).chart.to_dict()


def test_nothing_says_how_sure_the_domains_of_counts_without_sources_are() -> None:
    """The domains are not sources: an interval over three of them would be one of nothing."""
    counts = random_trace(0).counts("domain")
    frame = baselines.domain_nmi(counts)
    assert frame["nmi"].tolist() == metrics.domain_nmi(counts)["nmi"].tolist()
    assert frame[["estimate", "low", "high", "p_value"]].isna().all(axis=None)
    labels = chance_figure(DOMAIN_NMI, frame).chart.data["label"]
    assert labels.str.endswith(" as counted").all()
    cell = baselines.domain_cells(counts).iloc[0]
    assert "; no sources are told apart, so uncertain" in domain_cell(cell)
