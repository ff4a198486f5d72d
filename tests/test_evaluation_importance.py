"""Rank correlations against scipy, chance against chance, and every observed measure by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from moe_core.evaluation.importance import (
    MEASURES,
    OPPOSITE,
    PREDICTS,
    TOO_FEW,
    importance,
    measures,
    rank_correlations,
)
from moe_core.routing import RoutingTrace
from moe_core.routing.measures.against_chance import CHANCE

ROOT = Path(__file__).resolve().parent.parent


def frame_of(delta: np.ndarray, layers: np.ndarray | None = None, **known: np.ndarray) -> pd.DataFrame:
    """An importance table; measures that are not given are noise."""
    rng = np.random.default_rng(99)
    table = pd.DataFrame({"layer": np.zeros(len(delta), dtype=int) if layers is None else layers, "delta_nats": delta})
    return table.assign(**{name: known.get(name, rng.normal(size=len(delta))) for name in MEASURES})


def row(table: pd.DataFrame, measure: str) -> pd.Series:
    return table.set_index("measure").loc[measure]


# ---- correlations ----


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=4, max_size=20))
def test_in_one_layer_it_is_spearmans_coefficient_ties_included(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs, dtype=float).T
    found = row(rank_correlations(frame_of(y, load=x), resamples=20, permutations=20), "load")
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert np.isnan(found["rho"])
        assert np.isnan(found["rho_pooled"])
        assert found["verdict"] == TOO_FEW
        return
    assert found["rho"] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert found["rho_pooled"] == pytest.approx(found["rho"])


def test_layers_that_matter_more_do_not_make_a_measure_a_predictor() -> None:
    rng = np.random.default_rng(0)
    layers = np.repeat(np.arange(4), 8)
    depth = 10.0 * layers  # both grow with depth, within a layer they know nothing of each other
    found = rank_correlations(frame_of(depth + rng.normal(size=32), layers, reap=depth + rng.normal(size=32)))
    assert row(found, "reap")["rho_pooled"] > 0.8
    assert row(found, "reap")["verdict"] == CHANCE
    # And the other way round: what predicts within every layer is found though layers differ.
    within = rng.normal(size=32)
    found = row(rank_correlations(frame_of(within + depth, layers, reap=within - depth)), "reap")
    assert found["rho"] == pytest.approx(1)
    assert found["rho_pooled"] < 0
    assert found["verdict"] == PREDICTS
    expected = np.mean(
        [stats.spearmanr(within[layers == layer], within[layers == layer]).statistic for layer in range(4)]
    )
    assert found["rho"] == pytest.approx(expected)


def test_within_layers_by_hand() -> None:
    # Layer 0: ranks 1 2 3 against 1 2 3, products of centred ranks 1 + 0 + 1; layer 1: 1 2 3 against 3 1 2, sum
    # (-1)(1) + 0(-1) + 1(0) = -1; squares 2 + 2 on either side: (2 - 1) / 4.
    frame = frame_of(
        np.array([1.0, 5, 9, 30, 10, 20]), np.array([0, 0, 0, 1, 1, 1]), ean=np.array([1.0, 2, 3, 7, 8, 9])
    )
    assert row(rank_correlations(frame), "ean")["rho"] == pytest.approx(0.25)


def test_pure_chance_is_called_chance_and_p_values_are_even() -> None:
    rng = np.random.default_rng(1)
    layers = np.repeat(np.arange(3), 8)
    found = []
    for _ in range(100):
        known = {name: rng.normal(size=24) for name in MEASURES}
        found.append(rank_correlations(frame_of(rng.normal(size=24), layers, **known), resamples=10, permutations=199))
    p_values = np.concatenate([table["p_value"] for table in found])
    assert 0.03 < (p_values <= 0.05).mean() < 0.075  # 600 tests at 5 %
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert sum((table["verdict"] != CHANCE).any() for table in found) <= 10


def test_what_decides_the_effect_is_found_every_time() -> None:
    rng = np.random.default_rng(2)
    layers = np.repeat(np.arange(4), 8)
    for _ in range(20):
        load = rng.normal(size=32)
        table = rank_correlations(frame_of(load + 0.3 * rng.normal(size=32), layers, load=load, ean=-load))
        best, opposite = row(table, "load"), row(table, "ean")
        assert best["verdict"] == PREDICTS
        assert 0 < best["low"] <= best["rho"] <= best["high"] <= 1
        assert opposite["verdict"] == OPPOSITE
        assert best["n"] == 32


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    truth = 6 / np.pi * np.arcsin(0.6 / 2)  # Spearman's coefficient of a bivariate normal with correlation 0.6
    held = 0
    for _ in range(100):
        x = rng.normal(size=40)
        found = row(
            rank_correlations(frame_of(0.6 * x + 0.8 * rng.normal(size=40), load=x), resamples=200, permutations=1),
            "load",
        )
        held += found["low"] <= truth <= found["high"]
    assert held >= 89


def test_unknown_values_are_left_out_and_too_few_said_so() -> None:
    delta = np.arange(6.0)
    reap = np.array([0.0, 1, 2, 3, 4, np.nan])
    table = rank_correlations(frame_of(delta, reap=reap, specialization=np.full(6, np.nan)))
    assert (row(table, "reap")["n"], row(table, "reap")["rho"]) == (5, pytest.approx(1))
    assert row(table, "specialization")["n"] == 0
    assert row(table, "specialization")["verdict"] == TOO_FEW
    assert np.isnan(row(table, "specialization")["p_adjusted"])
    single = rank_correlations(frame_of(delta, layers=np.arange(6)))  # one expert a layer: nothing to choose from
    assert (single["verdict"] == TOO_FEW).all()


def test_the_same_seed_gives_the_same_answer() -> None:
    frame = frame_of(np.random.default_rng(5).normal(size=16))
    pd.testing.assert_frame_equal(rank_correlations(frame, seed=4), rank_correlations(frame, seed=4))


# ---- what is observed ----


def hand_trace() -> RoutingTrace:
    """One layer, 3 experts, top-2, 24 tokens: token 7 always goes to (0, 1), token 8 (domain b) to (0, 2)."""
    indices = [[0, 1]] * 12 + [[0, 2]] * 12
    scores = [[0.75, 0.25]] * 12 + [[0.5, 0.5]] * 12
    return RoutingTrace.from_arrays(
        router_indices=indices,
        router_scores=scores,
        num_experts=4,
        token_ids=[7] * 12 + [8] * 12,
        document_ids=[0] * 12 + [1] * 12,
        domain_ids=[0] * 12 + [1] * 12,
        domains=["a", "b"],
        layers=[3],
    )


SALIENCY = pd.DataFrame({"layer": 3, "expert": range(4), "reap": [1.0, 2, 3, np.nan], "ean": [4.0, 5, 6, 0]})


def test_every_measure_by_hand() -> None:
    table = measures(hand_trace(), SALIENCY)
    assert list(table.columns) == ["layer", "expert", *MEASURES]
    assert table["layer"].tolist() == [3] * 4
    assert table["load"].tolist() == pytest.approx([0.5, 0.25, 0.25, 0])
    # Shares of a domain's tokens over K/E = 1/2: expert 0 takes all of both, expert 1 all of a, expert 3 nothing.
    assert table["specialization"].tolist() == pytest.approx([2, 2, 2, 0])
    # Every occurrence of a type chooses the same experts: whatever an expert gets goes to it alone.
    np.testing.assert_allclose(table["vocabulary"], [1, 1, 1, np.nan])
    np.testing.assert_allclose(table["confidence"], [(0.75 + 0.5) / 2, 0.25, 0.5, np.nan])
    np.testing.assert_array_equal(table["reap"], SALIENCY["reap"])


def test_vocabulary_counts_how_much_of_a_type_an_expert_takes() -> None:
    # Type 5 (20 times): 15 to expert 0, 5 to expert 1; type 6 (10 times): all to expert 1; type 9, once: not counted.
    choices = [0] * 15 + [1] * 5 + [1] * 10 + [2]
    trace = RoutingTrace.from_arrays(
        router_indices=np.array(choices)[:, None],
        router_scores=np.ones((31, 1)),
        num_experts=3,
        token_ids=[5] * 20 + [6] * 10 + [9],
    )
    saliency = SALIENCY.assign(layer=0)
    table = measures(trace, saliency)
    np.testing.assert_allclose(table["vocabulary"], [0.75, (5 * 0.25 + 10 * 1) / 15, np.nan])
    assert table["specialization"].isna().all()  # one domain


def test_the_join_keeps_experts_that_both_know() -> None:
    effects = pd.DataFrame(
        {"layer": 3, "expert": [0, 0, 2], "domain": ["all", "a", "all"], "delta_nats": [0.1, 9.0, 0.3], "low": 0.0,
         "high": 1.0, "kl": 0.0}
    )  # fmt: skip
    joined = importance(effects, measures(hand_trace(), SALIENCY))
    assert list(joined.columns) == ["layer", "expert", "delta_nats", "low", "high", *MEASURES]
    assert joined[["expert", "delta_nats", "reap"]].to_numpy().tolist() == [[0, 0.1, 1], [2, 0.3, 3]]


def test_importing_takes_neither_torch_nor_scipy_stats() -> None:
    code = (
        "import sys, moe_core.evaluation.importance; print([m for m in ('torch', 'scipy.stats') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
