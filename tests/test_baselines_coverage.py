"""The 95 % interval of every baseline holds the truth. The whole study is moe_core.routing.coverage."""

from __future__ import annotations

import pytest

from moe_core.routing import calibration, coverage


@pytest.mark.parametrize("name", calibration.BY_LAYER)
def test_the_interval_holds_the_measure_of_other_samples(name: str) -> None:
    """95 % wanted; of 40 seeds, 8 misses tell that something is wrong."""
    assert coverage.coverage(name, 40) >= 0.8
