"""Chance is called chance and what was planted is found: the promise of every baseline, on many small random traces.

The whole study, with more draws, is moe_core.routing.calibration.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

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
    assert stats.kstest(spread, "uniform").pvalue > 0.001


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
