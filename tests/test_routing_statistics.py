"""Certainty of a number: each tool of statistics against scipy, a case computed by hand, or its limit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from moe_core.routing.statistics.bootstrap import (
    draws,
    percentile_interval,
    resampled_totals,
    stratified_draws,
    widening,
)
from moe_core.routing.statistics.intervals import (
    mean_error,
    number_of_hits_p,
    p_of_intervals,
    paired_difference,
    ratio_error,
    student_interval,
    student_p,
    wilson,
    wilson_of_clusters,
    wilson_of_shares,
)
from moe_core.routing.statistics.permutation import p_values

numbers = st.lists(st.floats(-100, 100), min_size=2, max_size=20).filter(lambda values: np.std(values) > 1e-3)


@settings(max_examples=50, deadline=None)
@given(values=numbers)
def test_student_is_that_of_scipy(values: list[float]) -> None:
    found, n = np.array(values), len(values)
    mean, error = float(found.mean()), mean_error(found)
    assert student_interval(mean, error, n - 1) == pytest.approx(stats.t.interval(0.95, n - 1, mean, error))
    assert student_p(mean, error, n - 1, n) == pytest.approx(stats.ttest_1samp(found, 0.0).pvalue, abs=1e-9)


def test_one_value_has_no_interval_and_no_spread_is_told_by_signs() -> None:
    assert math.isnan(mean_error(np.array([1.0])))
    assert all(math.isnan(end) for end in student_interval(1.0, 0.5, 0))
    assert math.isnan(student_p(1.0, 0.5, 0, 1))
    assert student_p(2.0, 0.0, 3, 4) == 2.0**-3
    assert student_p(0.0, 0.0, 3, 4) == 1.0
    same = paired_difference([2.0, 3.0, 4.0], [1.0, 2.0, 3.0])
    assert (same.mean, same.low, same.high, same.p_value, same.pairs) == (1.0, 1.0, 1.0, 0.25, 3)


def test_the_p_of_an_interval_is_that_of_its_nearer_side() -> None:
    value, low, high = (
        np.array([1.0, 1.0, -1.0, 0.0, 1.0]),
        np.array([0.0, 0.5, -9, 0, np.nan]),
        np.array([3, 9, 0, 0, 2.0]),
    )
    p = p_of_intervals(value, low, high)
    assert p[[0, 2]] == pytest.approx(0.05)  # 0 is the end of the interval
    assert p[1] == pytest.approx(2 * stats.norm.sf(2 * stats.norm.isf(0.025)))
    assert (p[3], bool(np.isnan(p[4]))) == (1.0, True)


def test_a_ratio_of_equal_weights_is_a_mean_and_a_single_source_lends_no_freedom() -> None:
    values = np.array([1.0, 4.0, 2.0, 7.0])
    error, freedom = ratio_error(values, np.ones(4), np.zeros(4))
    assert (error, freedom) == (pytest.approx(mean_error(values)), 3)
    assert ratio_error(values, np.ones(4), np.array([0, 0, 0, 1]))[1] == 2


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 60), data=st.data())
def test_wilson_of_shares_is_wilson(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    low, high = wilson_of_shares(np.array([hits / n]), np.array([float(n)]))
    assert (low[0], high[0]) == (pytest.approx(wilson(hits, n)[0], abs=1e-12), pytest.approx(wilson(hits, n)[1]))


def test_clusters_that_are_alike_inside_are_worth_fewer_tokens() -> None:
    tokens, mixed = np.full(10, 20), np.array([[10, 10]] * 5 + [[11, 9]] * 5)
    apart = np.array([[20, 0]] * 5 + [[0, 20]] * 5)
    share = np.array([0.5, 0.5])
    widths = [np.subtract(*wilson_of_clusters(counts, tokens, share)[::-1]) for counts in (mixed, apart)]
    assert (widths[1] > 3 * widths[0]).all()
    alone = wilson_of_shares(share, np.array([200.0, 200.0]))
    assert (widths[0] > alone[1] - alone[0]).all(), "widened to Student's t, for ten clusters"


@pytest.mark.parametrize(("hits", "n", "chance"), [(3, 10, 0.25), (0, 5, 0.5), (9, 10, 0.3), (4, 8, 0.5)])
def test_hits_of_equal_chance_have_the_binomial_p(hits: int, n: int, chance: float) -> None:
    expected = stats.binomtest(hits, n, chance).pvalue
    assert number_of_hits_p(hits, np.full(n, chance)) == pytest.approx(expected)


def test_draws_are_as_many_as_there_are_units_in_every_stratum() -> None:
    rng = np.random.default_rng(0)
    assert (draws(7, 50, rng).sum(axis=1) == 7).all()
    strata = np.array([2, 0, 2, 2, 0])
    times = stratified_draws(strata, 50, rng)
    assert (times[:, strata == 2].sum(axis=1) == 3).all()
    assert (times[:, strata == 0].sum(axis=1) == 2).all()
    totals = resampled_totals(np.array([[1, 5], [1, 5]]), rng)
    assert (totals == [2.0, 10.0]).all()


def test_few_units_widen_the_interval_and_many_do_not() -> None:
    assert widening(3, 2) == pytest.approx(math.sqrt(1.5) * stats.t.ppf(0.975, 2) / stats.norm.ppf(0.975))
    assert widening(10**6, 10**6 - 1) == pytest.approx(1.0, abs=1e-5)
    resampled = np.linspace(0.0, 1.0, 1001)[:, None]
    low, high = percentile_interval(np.array([0.5]), resampled, 3, 2, limits=(0.0, 1.0))
    assert (low[0], high[0]) == (0.0, 1.0)
    many = percentile_interval(np.array([0.5]), resampled, 10**6, 10**6 - 1)
    assert [end[0] for end in many] == pytest.approx([0.025, 0.975], abs=1e-4)
    shifted = percentile_interval(np.array([0.4]), resampled, 10**6, 10**6 - 1, about_L=np.array([0.5]))
    assert [end[0] for end in shifted] == pytest.approx([-0.075, 0.875], abs=1e-4)


def test_p_values_count_the_draws_that_do_as_well() -> None:
    null = np.array([[0.1, 0.2, np.nan], [0.3, 0.2, 0.1], [0.2, 0.1, 0.1]])
    found = p_values(np.array([0.2, 0.3, 0.3]), null)
    assert found[:2].tolist() == [3 / 4, 1 / 4]
    assert np.isnan(found[2])
