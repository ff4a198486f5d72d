"""The 95 % interval of every baseline holds the true value. The whole study is moe_core.routing.coverage."""

from __future__ import annotations

import pytest
from scipy import stats

from moe_core.routing import coverage
from moe_core.routing.calibration import BY_LAYER
from moe_core.routing.coverage import KINDS

SEEDS = 60
FEWEST = int(stats.binom.ppf(1e-4, SEEDS, 0.95))
"""An interval that holds the truth in 95 of 100 samples holds it less often than this once in ten thousand times."""


@pytest.mark.parametrize("kind", ["documents alike", "unequal lengths", "six documents"])
@pytest.mark.parametrize("name", BY_LAYER)
def test_the_interval_holds_the_true_value(name: str, kind: str) -> None:
    held, known = coverage.coverage(name, KINDS[kind], SEEDS)
    assert known == SEEDS
    assert held >= FEWEST


def test_runs_of_equal_choice_leave_the_interval_right() -> None:
    held, _ = coverage.coverage("layer_flow", KINDS["autocorrelated .8"], SEEDS)
    assert held >= FEWEST
