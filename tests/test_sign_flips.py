"""Sign flips by source: patterns and sums by hand, the exact test by enumeration, runs that are no finding."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.routing import RoutingTrace, baselines
from moe_core.routing.calibration import random_trace
from moe_core.routing.measures.against_chance import CHANCE
from moe_core.routing.measures.coactivation import FEW_SOURCES, coactivation_verdict
from moe_core.routing.statistics.sign_flips import (
    MIN_SOURCES,
    flipped_sums,
    informative,
    sign_patterns,
    smallest_p,
)

RNG = np.random.default_rng(0)


def test_patterns_of_three_sources_are_written_out() -> None:
    assert sign_patterns(3, 200, RNG).tolist() == [[1, -1, 1], [1, 1, -1], [1, -1, -1]]
    assert sign_patterns(1, 200, RNG).tolist() == [[1]]


@given(st.integers(2, 300), st.integers(1, 60), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_patterns_are_signs_and_each_other_one_once_where_they_are_few(units: int, draws: int, seed: int) -> None:
    signs = sign_patterns(units, draws, np.random.default_rng(seed))
    assert set(np.unique(signs)) <= {-1.0, 1.0}
    assert (signs[:, 0] == 1).all()
    if units <= 6 and 2 ** (units - 1) - 1 <= draws:
        every = {pattern for pattern in product((1.0, -1.0), repeat=units) if pattern[0] == 1 and -1.0 in pattern}
        assert {tuple(row) for row in signs.tolist()} == every
        assert len(signs) == len(every)
    else:
        assert len(signs) == draws or len(signs) == 2 ** (units - 1) - 1


def test_sums_by_hand() -> None:
    residuals = np.array([[2.0, -1.0], [1.0, 0.0], [-1.0, 3.0]])
    # As observed; second, third, both flipped.
    assert flipped_sums(residuals, sign_patterns(3, 9, RNG)).tolist() == [[2, 2], [0, 2], [4, -4], [2, -4]]
    assert informative(np.array([[0.0, 0.0], [0.0, 1e-15], [0.5, 0.0]])).tolist() == [False, False, True]


def test_six_sources_can_reach_five_per_cent_and_five_cannot() -> None:
    assert MIN_SOURCES == 6
    assert smallest_p(np.array([0, 1, 5, 6])).tolist() == [1, 1, 1 / 16, 1 / 32]


def teams(documents: int, tokens: int = 60, **others: object) -> RoutingTrace:
    """Half the tokens choose experts 0 and 1, half 2 and 3."""
    indices = np.array([[0, 1], [2, 3]] * (documents * tokens // 2))
    return RoutingTrace.from_arrays(
        router_indices=indices,
        router_scores=np.full(indices.shape, 0.5),
        num_experts=4,
        token_ids=np.zeros(len(indices), int),
        document_ids=np.arange(len(indices)) // tokens,
        **others,
    )


def test_below_six_sources_nothing_can_be_told_and_six_find_the_plainest_teams() -> None:
    five = baselines.coactivation(teams(5))
    assert five["verdict"].tolist() == [FEW_SOURCES]
    assert five[["null_mean", "p_value", "effect"]].isna().all(axis=None)
    assert coactivation_verdict(five) == f"This {FEW_SOURCES}."
    pairs = baselines.coactivation_pairs(teams(5))
    assert pairs["p_value"].isna().all()
    assert pairs["uncertain"].all()
    assert pairs["lift_over_chance"].tolist() == pytest.approx([3, 0, 0, 0, 0, 3], abs=0.2)
    six = baselines.coactivation(teams(6))
    assert six["p_value"].tolist() == [1 / 32]  # every one of the 31 other patterns is smaller
    assert "clearly" in six["verdict"][0]
    assert baselines.coactivation_pairs(teams(6))["p_value"].tolist() == [1 / 32] * 6


def test_a_source_is_one_observation_whatever_documents_and_domains_it_has() -> None:
    """Forty documents of three sources tell as little as three."""
    trace = teams(40, source_ids=np.arange(2400) % 3, domain_ids=np.arange(2400) // 60 % 2, domains=["a", "b"])
    assert baselines.coactivation(trace)["verdict"].tolist() == [FEW_SOURCES]
    assert baselines.coactivation_pairs(trace)["uncertain"].all()


def test_sources_of_a_single_token_tell_nothing() -> None:
    short = teams(3)
    indices = np.concatenate([short.router_indices, np.tile([0, 1], (1, 4, 1))], axis=1)
    trace = RoutingTrace.from_arrays(
        router_indices=indices,
        router_scores=np.full(indices.shape, 0.5),
        num_experts=4,
        token_ids=np.zeros(184, int),
        document_ids=[*(np.arange(180) // 60), 3, 4, 5, 6],
        domain_ids=[0] * 180 + [1, 2, 3, 4],
        domains=list("abcde"),
    )
    assert baselines.coactivation(trace)["verdict"].tolist() == [FEW_SOURCES]


def test_runs_of_independent_experts_are_no_teams() -> None:
    """AR(1) logits at .8: shuffled tokens alone found "teams" in three of four such traces."""
    found = pairs = 0
    for seed in range(40):
        trace = random_trace(seed, phi=0.8, documents=40, document_tokens=100, layers=1)
        found += baselines.coactivation(trace, permutations=39)["verdict"][0] != CHANCE
        pairs += bool((~baselines.coactivation_pairs(trace, permutations=39)["uncertain"]).any())
    assert found <= 7  # of 40 at 5 %: more than 7 has a chance of 0.1 %
    assert pairs <= 7


def test_a_tiny_excess_of_hundreds_of_sources_is_not_called_clear() -> None:
    """1.5 % of the tokens are moved to one pair in every source: certain, but no team."""
    rng = np.random.default_rng(1)
    indices = np.argsort(rng.random((1, 300 * 100, 8)), axis=-1)[..., :2]
    indices[0, rng.random(30_000) < 0.03] = [0, 1]
    trace = RoutingTrace.from_arrays(
        router_indices=indices,
        router_scores=np.full(indices.shape, 0.5),
        num_experts=8,
        token_ids=np.zeros(30_000, int),
        document_ids=np.arange(30_000) // 100,
    )
    frame = baselines.coactivation(trace)
    assert "clearly" not in frame["verdict"][0]
    assert frame["effect"][0] < 0.05
    pairs = baselines.coactivation_pairs(trace)
    best = pairs.loc[pairs["lift_over_chance"].idxmax()]
    assert (best["expert_i"], best["expert_j"]) == (0, 1)
    assert not best["uncertain"]


def test_hundreds_of_sources_of_uneven_load_are_no_teams() -> None:
    """The best two of independent logits are not quite a random pair of these loads; .005 of the pairs is nothing."""
    found = 0
    for seed in range(12):
        trace = random_trace(seed, skew=1.0, documents=400, document_tokens=40, layers=1)
        found += baselines.coactivation(trace, permutations=39)["verdict"][0] != CHANCE
    assert found <= 4  # of 12 at 5 %: more than 4 has a chance of 0.02 %


def test_a_pair_that_is_absent_by_accident_is_not_sure() -> None:
    """Experts 6 and 7 are rare and come in long runs: in a few sources, or in none, together."""
    wrong = 0
    for seed in range(20):
        trace = random_trace(seed, phi=0.8, skew=1.0, documents=40, document_tokens=100, layers=1)
        pairs = baselines.coactivation_pairs(trace, permutations=39)
        wrong += bool((~pairs["uncertain"]).any())
    assert wrong <= 4


def test_permuting_experts_and_sources_permutes_the_pairs() -> None:
    trace = random_trace(4, planted="coactivation", layers=1)
    frame = baselines.coactivation_pairs(trace, permutations=39).set_index(["expert_i", "expert_j"])
    renamed = RoutingTrace.from_arrays(
        router_indices=7 - trace.router_indices.astype(int),
        router_scores=trace.router_scores,
        num_experts=8,
        token_ids=trace.token_ids,
        document_ids=trace.document_ids,
        domain_ids=trace.domain_ids,
        domains=trace.domains,
    )
    other = baselines.coactivation_pairs(renamed, permutations=39)
    swapped = other.assign(expert_i=7 - other["expert_j"], expert_j=7 - other["expert_i"])
    swapped = swapped.set_index(["expert_i", "expert_j"]).loc[frame.index]
    pd.testing.assert_series_equal(frame["tokens"], swapped["tokens"])
    pd.testing.assert_series_equal(frame["expected"], swapped["expected"])
