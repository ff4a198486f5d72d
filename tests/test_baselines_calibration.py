"""Chance is called chance and what was planted is found: the promise of every baseline, on many small random traces.

The whole study, with more draws, is moe_core.routing.calibration.
"""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from moe_core.routing import baselines, calibration

DRAWS = 39  # 40 values of p: 5 % is exactly two of them
# domain_nmi has such a test in test_routing_baselines; pairs and cells are skewed in the study.
UNIFORM = [name for name in calibration.MEASURES if name != "domain_nmi"]
SKEWED = [name for name in calibration.BY_LAYER if name != "domain_nmi"]


@pytest.mark.parametrize(
    ("name", "kind"), [(name, "uniform") for name in UNIFORM] + [(name, "load-skewed") for name in SKEWED]
)
def test_random_routing_is_called_chance_in_90_of_100_seeds(name: str, kind: str) -> None:
    nothing, p_values = calibration.chance_count(name, 100, kind, DRAWS)
    assert nothing >= 90
    # Steps of 1/40 alone move the Kolmogorov-Smirnov statistic by as much: spread each over its step.
    spread = p_values - np.random.default_rng(0).random(len(p_values)) / (DRAWS + 1)
    assert calibration.evenness(name, spread) > 0.001


FEW_SEEDS = 40
IN_RUNS = [
    (name, kind)
    for name in calibration.MEASURES
    for kind in ("autocorrelated .8", "autocorrelated .8, few documents")
    if kind in calibration.kinds_of_chance(name)
]


@pytest.mark.parametrize(("name", "kind"), IN_RUNS)
def test_runs_of_independent_choices_are_called_chance(name: str, kind: str) -> None:
    """All but persistence, which is there. Shuffled tokens made teams of nine in ten."""
    nothing, _ = calibration.chance_count(name, FEW_SEEDS, kind, DRAWS)
    assert FEW_SEEDS - nothing <= calibration.most_found(FEW_SEEDS, len(IN_RUNS))


def test_limits_are_exact_binomial_ones_shared_by_all_cells() -> None:
    # P(more than k of 40 at 5 %): 4.8 % for 4 and .34 % for 6, by adding up the binomial probabilities.
    assert calibration.most_found(40, 1) == 4
    more_than = [1 - sum(comb(40, n) * 0.05**n * 0.95 ** (40 - n) for n in range(k + 1)) for k in range(8)]
    limit = calibration.most_found(40, 12)
    assert more_than[limit] <= 0.05 / 12 < more_than[limit - 1]


@pytest.mark.parametrize("name", calibration.MEASURES)
def test_a_planted_connection_is_found_in_every_seed(name: str) -> None:
    assert calibration.found_count(name, 20, DRAWS) == 20


def test_one_planted_layer_does_not_spread_to_the_others() -> None:
    """With several layers one real finding must not make the rest look found: at most about one in twenty."""
    wrong = 0
    for seed in range(25):
        mixed = calibration.random_trace(seed, layers=4)
        planted = calibration.random_trace(seed, layers=1, planted="vocabulary")
        indices = mixed.router_indices.copy()
        indices[0] = planted.router_indices[0]
        frame = baselines.vocabulary(
            calibration.RoutingTrace.from_arrays(
                router_indices=indices,
                router_scores=mixed.router_scores,
                num_experts=mixed.num_experts,
                token_ids=planted.token_ids,
                document_ids=mixed.document_ids,
            ),
            permutations=DRAWS,
        )
        assert frame["p_value"][0] == pytest.approx(1 / (DRAWS + 1))
        wrong += int((frame["p_adjusted"][1:] <= 0.05).sum())
    assert wrong <= 10  # 4 expected of 75


def test_autocorrelated_logits_are_an_ar1_series_of_unchanged_variance() -> None:
    document_T = np.arange(60_000) // 100
    logits = np.random.default_rng(0).gumbel(size=(1, 60_000, 2))
    calibration._autocorrelate(logits, document_T, 0.8)
    assert logits.mean() == pytest.approx(0, abs=0.03)
    assert logits.std() == pytest.approx(np.pi / np.sqrt(6), rel=0.02)
    inside = np.diff(document_T) == 0
    series = logits[0, :, 0]
    assert np.corrcoef(series[1:][inside], series[:-1][inside])[0, 1] == pytest.approx(0.8, abs=0.02)
    assert np.corrcoef(series[1:][~inside], series[:-1][~inside])[0, 1] == pytest.approx(0, abs=0.15)
    assert np.corrcoef(logits[0].T)[0, 1] == pytest.approx(0, abs=0.03)


def test_kinds_of_random_routing_are_what_they_are_called() -> None:
    traces = {kind: calibration.random_trace(1, **arguments) for kind, arguments in calibration.RANDOM.items()}
    lengths = {kind: np.bincount(trace.document_ids) for kind, trace in traces.items()}
    assert lengths["autocorrelated .8"].tolist() == [100] * 40
    assert lengths["autocorrelated .8, few documents"].tolist() == [100] * 8
    uneven = lengths["autocorrelated .8, unequal documents"]
    assert uneven.sum() == pytest.approx(4000, abs=40)
    assert uneven.max() > 5 * uneven.min()
    tokens, documents = traces["autocorrelated .8"].token_ids, traces["autocorrelated .8"].document_ids
    inside = np.diff(documents) == 0
    assert (np.diff(tokens) == 0)[inside].mean() == pytest.approx(0.8 + 0.2 / calibration.TYPES, abs=0.03)
    assert (np.diff(tokens) == 0)[~inside].mean() < 0.4
    assert tuple(kind for kind in calibration.RANDOM if ".4" in kind or ".8" in kind) == calibration.RUNS
