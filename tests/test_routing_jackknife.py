"""The delete-a-group jackknife and estimates without bias: by hand, against formulas, and as properties."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from moe_core.routing import RoutingTrace, baselines
from moe_core.routing.calibration import random_trace
from moe_core.routing.statistics import jackknife
from moe_core.routing.statistics.information import corrected_information, entropy_bias, nmi, nmi_estimate
from moe_core.routing.statistics.jackknife import Groups, groups_for, source_groups
from moe_core.routing.trace import blocks
from moe_core.routing.trace.trace import StoredTrace


def groups_of(*stratum: int) -> Groups:
    return Groups(np.array(stratum, dtype=np.int64))


def test_the_jackknife_of_a_mean_is_students_interval() -> None:
    """Four groups of one number each: 1, 2, 3, 6. Mean 3, standard error sqrt(14/3 / 4) = 1.0801, t of 3 degrees."""
    values = np.array([[1.0, 1], [2, 1], [3, 1], [6, 1]])
    groups = groups_of(0, 0, 0, 0)
    left = groups.without_each(values)
    assert left.tolist() == [[pytest.approx(4 / 3 * sum_), pytest.approx(4)] for sum_ in (11, 10, 9, 6)]
    mean, means = np.array([3.0]), (left[:, 0] / left[:, 1])[:, None]
    assert means[:, 0] == pytest.approx([11 / 3, 10 / 3, 3, 2])
    assert groups.error(mean, means)[0] == pytest.approx(np.sqrt(14 / 12))
    low, high = groups.interval(mean, means, limits=(-np.inf, np.inf))
    assert (low[0], high[0]) == pytest.approx(stats.t.interval(0.95, 3, 3, np.sqrt(14 / 12)))
    about = groups.interval(mean, means, np.array([1.0]), limits=(0.0, 1.5))
    assert (about[0][0], about[1][0]) == (0.0, 1.5), "about the estimate, within the limits"


def test_the_jackknife_goes_by_stratum() -> None:
    """Two strata of two: what is left of a stratum takes the weight of all of it; its variance adds up."""
    groups = groups_of(0, 0, 1, 1)
    left = groups.without_each(np.array([[1.0], [3.0], [10.0], [20.0]]))
    assert left[:, 0].tolist() == [36.0, 32.0, 44.0, 24.0]
    total = np.array([34.0])
    # By hand: variance of a sum is n / (n - 1) sum of squares about the mean: 2 (1 + 1) + 2 (25 + 25) = 104.
    assert groups.error(total, left)[0] == pytest.approx(np.sqrt(104))
    assert groups.freedom == 2


def test_too_few_groups_have_no_interval() -> None:
    groups = groups_of(0)
    assert groups.freedom == 0
    assert groups.without_each(np.array([[5.0]])).tolist() == [[5.0]]
    assert np.isnan(groups.interval(np.array([0.5]), np.array([[0.5]]))).all()


def test_bias_of_independent_tokens_is_millers() -> None:
    """One group, so tokens count as independent: 100 of them in 4 cells of 6 possible ones, bias (4 - 1) / 200."""
    counts_GC = np.array([[40, 30, 20, 10, 0, 0]])
    assert entropy_bias(counts_GC, groups_of(0)) == pytest.approx(3 / 200)
    # And of mutual information: (cells - rows - columns + 1) / 2 N, occupied ones (Panzeri and Treves 1996).
    counts_GXY = np.array([[[30, 10, 0], [5, 55, 0], [0, 0, 0]]])
    table = counts_GXY[0, :2, :2] / 100
    plain = (table * np.log(table / np.outer(table.sum(1), table.sum(0)))).sum()
    information, entropy = corrected_information(counts_GXY, groups_of(0))
    assert information == pytest.approx(plain - (4 - 2 - 2 + 1) / 200)
    assert entropy == pytest.approx(-(0.35 * np.log(0.35) + 0.65 * np.log(0.65)) + 1 / 200)


def test_bias_of_documents_by_hand() -> None:
    """Two documents of two tokens, each of one expert: shares 1/2, 1/2. Residuals are +-1, so the variance of a share
    is 2 (1 + 1) / 16 = 1/4, and the bias half the sum of (1/4) / (1/2): 1/2. Miller's for four tokens is 1/8."""
    assert entropy_bias(np.array([[2, 0], [0, 2]]), groups_of(0, 0)) == pytest.approx(1 / 2)
    assert entropy_bias(np.array([[2, 0], [0, 2]]).sum(axis=0)[None], groups_of(0)) == pytest.approx(1 / 8)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_with_documents_of_one_token_the_bias_is_millers_on_average(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.choice(5, 400, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    found = entropy_bias(np.eye(5)[tokens], groups_of(*[0] * 400))
    assert found == pytest.approx(4 / 800, rel=0.01)


@given(st.integers(0, 10_000), st.integers(2, 12))
@settings(max_examples=40, deadline=None)
def test_an_estimate_knows_no_order_of_experts_or_groups_and_doubles(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    counts_GXY = rng.poisson(4 * rng.random((size, 1, 1)) + 0.5, (size, 4, 3)) + np.eye(4, 3, dtype=int)
    groups = groups_of(*[0] * size)
    expected = nmi_estimate(counts_GXY, groups)
    moved = counts_GXY[rng.permutation(size)][:, rng.permutation(4)][:, :, rng.permutation(3)]
    assert nmi_estimate(moved, groups) == pytest.approx(expected, abs=1e-12)
    assert nmi_estimate(7 * counts_GXY, groups) == pytest.approx(expected, abs=1e-12), "only sources say how sure it is"
    estimate, low, high = expected
    assert 0 <= low <= estimate <= high <= 1
    assert estimate <= float(nmi(counts_GXY.sum(axis=0))) + 0.2


@pytest.mark.parametrize("baseline", [baselines.layer_flow, baselines.vocabulary, baselines.domain_nmi])
def test_renaming_experts_leaves_every_estimate(baseline: object) -> None:
    trace = random_trace(4, layers=2, alike=0.5, planted="layer_flow")
    names = np.random.default_rng(0).permutation(trace.num_experts).astype(np.int16)
    renamed = RoutingTrace.from_arrays(
        router_indices=names[trace.router_indices], router_scores=trace.router_scores, num_experts=trace.num_experts,
        token_ids=trace.token_ids, document_ids=trace.document_ids, domain_ids=trace.domain_ids, domains=trace.domains,
    )  # fmt: skip
    columns = ["estimate", "low", "high"]
    one, other = (baseline(each, permutations=3)[columns].to_numpy() for each in (trace, renamed))  # type: ignore[operator]
    assert one == pytest.approx(other, abs=1e-12)


def test_every_source_is_in_one_group_of_its_domain() -> None:
    T, D = 3000, 300
    documents = np.repeat(np.arange(D), T // D)
    trace = RoutingTrace.from_arrays(
        router_indices=np.zeros((T, 1), int), router_scores=np.ones((T, 1)), num_experts=2, token_ids=np.zeros(T, int),
        document_ids=documents, domain_ids=(documents % 3 == 0).astype(int), domains=["a", "b"],
    )  # fmt: skip
    sources = source_groups(trace)
    label_T = sources.label(trace)
    assert sources.groups.count == pytest.approx(jackknife.MAX_GROUPS, abs=1)
    for group in range(sources.groups.count):
        own = label_T == group
        assert set(trace.domain_ids[own].tolist()) == {sources.groups.stratum[group]}
        assert len(np.unique(documents[own])) in {4, 5}
    assert all(len(set(label_T[documents == document].tolist())) == 1 for document in range(D))
    assert groups_for(trace, 10**9, 0, 10**9).groups.count == pytest.approx(jackknife.MIN_GROUPS, abs=1)


def test_more_sources_than_can_be_held_are_grouped_by_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "MAX_BLOCKS", 64)
    monkeypatch.setattr(blocks, "_MIN_BLOCKS", 64)
    trace = random_trace(1, layers=2)
    many = RoutingTrace.from_arrays(
        router_indices=trace.router_indices, router_scores=trace.router_scores, num_experts=trace.num_experts,
        token_ids=trace.token_ids, document_ids=np.arange(600) // 2, domain_ids=trace.domain_ids, domains=trace.domains,
    )  # fmt: skip
    path = tmp_path / "x.parquet"
    many.save(path)
    sources = source_groups(many)
    assert sources.sources.hashed == 32
    assert sources.groups.freedom > 40
    assert np.array_equal(source_groups(StoredTrace.open(path)).label(many), sources.label(many))
    assert baselines.domain_nmi(many, permutations=3)[["low", "high"]].notna().all(axis=None)


def test_a_source_of_several_domains_is_left_out_as_a_whole() -> None:
    trace = random_trace(1, layers=1)
    domains = np.where(trace.document_ids < 4, np.arange(600) % 2, trace.document_ids % 2)
    mixed = RoutingTrace.from_arrays(
        router_indices=trace.router_indices, router_scores=trace.router_scores, num_experts=trace.num_experts,
        token_ids=trace.token_ids, document_ids=trace.document_ids, domain_ids=domains, domains=trace.domains,
    )  # fmt: skip
    sources = source_groups(mixed)
    assert np.bincount(sources.groups.stratum).tolist() == [10, 10, 4]
    label_T = sources.label(mixed)
    assert all(len(set(label_T[mixed.document_ids == document].tolist())) == 1 for document in range(24))


def test_a_favourite_chosen_apart_is_not_raised_by_the_maximum() -> None:
    """Choices that know nothing of the token: the plug-in score is far above 1/E, the estimate is not."""
    rng = np.random.default_rng(0)
    T, E = 4000, 8
    trace = RoutingTrace.from_arrays(
        router_indices=rng.integers(0, E, (T, 1)), router_scores=np.ones((T, 1)), num_experts=E,
        token_ids=rng.integers(0, 200, T), document_ids=np.arange(T) // 50,
    )  # fmt: skip
    row = baselines.vocabulary(trace, permutations=19).iloc[0]
    assert row["score"] > 0.22
    assert row["estimate"] == pytest.approx(1 / E, abs=0.02)
    assert row["low"] <= 1 / E <= row["high"]
