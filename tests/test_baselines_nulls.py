"""What each null keeps and breaks, intervals and pooled p-values: by hand, by enumeration and against scipy."""

from __future__ import annotations

from itertools import pairwise
from itertools import permutations as orders
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from moe_core.errors import TraceError, UsageError
from moe_core.routing import RoutingTrace, baselines, metrics
from moe_core.routing.calibration import random_trace
from moe_core.routing.measures import flow, vocabulary
from moe_core.routing.measures.coactivation import COACTIVATION_FINDING, coactivation_verdict
from moe_core.routing.measures.flow import flow_verdict
from moe_core.routing.measures.persistence import persistence_verdict
from moe_core.routing.measures.tokens import token_types
from moe_core.routing.measures.vocabulary import VOCABULARY_FINDING, vocabulary_verdict
from moe_core.routing.statistics import permutation
from moe_core.routing.statistics.bootstrap import MAX_UNITS, units
from moe_core.routing.statistics.multiple_comparisons import Pool
from moe_core.routing.trace import trace as trace_module
from moe_core.routing.trace.blocks import blocks
from moe_core.routing.trace.trace import AnyTrace, StoredTrace

ALL = [
    baselines.domain_nmi,
    baselines.domain_cells,
    baselines.persistence,
    baselines.coactivation,
    baselines.coactivation_pairs,
    baselines.vocabulary,
    baselines.layer_flow,
]
COMMON = ["null_mean", "null_p99", "p_value", "p_adjusted", "effect", "estimate", "low", "high", "verdict"]


def trace_of(indices: Any, *, num_experts: int = 4, documents: Any = None, **others: Any) -> RoutingTrace:
    array = np.asarray(indices)
    tokens = array.shape[-2]
    others.setdefault("token_ids", np.zeros(tokens, int))
    others.setdefault("router_scores", np.where(array < 0, 0.0, np.linspace(0.6, 0.4, array.shape[-1])))
    return RoutingTrace.from_arrays(router_indices=array, num_experts=num_experts, document_ids=documents, **others)


@pytest.mark.parametrize("baseline", ALL)
def test_every_baseline_is_seeded_and_takes_a_stored_trace(baseline: Any, tmp_path: Path) -> None:
    trace = random_trace(5, skew=0.5, layers=2)
    frame = baseline(trace, permutations=20, seed=3)
    pd.testing.assert_frame_equal(frame, baseline(trace, permutations=20, seed=3))
    assert not frame.equals(baseline(trace, permutations=20, seed=4))
    trace.save(tmp_path / "x.parquet")
    pd.testing.assert_frame_equal(frame, baseline(StoredTrace.open(tmp_path / "x.parquet"), permutations=20, seed=3))
    with pytest.raises(UsageError, match="permutations is 0"):
        baseline(trace, permutations=0)


@pytest.mark.parametrize(
    ("baseline", "measure", "value"),
    [
        (baselines.persistence, "first", lambda trace: metrics.persistence(trace)["first"]),
        (
            baselines.vocabulary,
            "score",
            lambda trace: metrics.vocabulary_specialization(trace).groupby("layer")["share"].mean(),
        ),
        (baselines.domain_nmi, "nmi", lambda trace: metrics.domain_nmi(trace)["nmi"]),
    ],
)
def test_the_measure_is_that_of_metrics(baseline: Any, measure: str, value: Any) -> None:
    trace = random_trace(1, skew=1.0, layers=2)
    frame = baseline(trace, permutations=5)
    assert frame[measure].to_numpy() == pytest.approx(value(trace).to_numpy())
    assert [column for column in frame if column in COMMON] == COMMON
    assert frame["effect"].to_numpy() == pytest.approx((frame[measure] - frame["null_mean"]).to_numpy())
    assert (frame["low"] <= frame[measure]).all()
    assert (frame["high"] >= frame[measure]).all()


def test_flow_nmi_by_hand() -> None:
    # One slot, the next layer's expert is this one's plus 1: everything is told. Then: nothing is.
    here = np.array([0, 1, 2, 3] * 4)
    told = trace_of(np.stack([here, (here + 1) % 4])[..., None], documents=np.arange(16) // 8)
    assert baselines.layer_flow(told, permutations=5)["nmi"].tolist() == [pytest.approx(1)]
    nothing = trace_of(np.stack([here, np.repeat(np.arange(4), 4)])[..., None], documents=np.arange(16) // 8)
    frame = baselines.layer_flow(nothing, permutations=5)
    assert frame["nmi"].tolist() == [pytest.approx(0, abs=1e-12)]
    assert frame[["layer", "next_layer"]].to_numpy().tolist() == [[0, 1]]
    assert flow_verdict(baselines.layer_flow(told.__class__.from_arrays(
        router_indices=told.router_indices[:1], router_scores=told.router_scores[:1], num_experts=4,
        token_ids=told.token_ids))).startswith("There is nothing to test")  # fmt: skip


def test_persistence_null_is_the_mean_over_all_orders_of_a_document() -> None:
    """Two documents; the expected sameness of neighbours by writing out every order."""
    first, second = [0, 0, 1, 2], [3, 3, 3, 1, 0]
    trace = trace_of(np.array(first + second)[:, None], documents=[0] * 4 + [1] * 5)

    def same(choices: Any) -> int:
        return sum(a == b for a, b in pairwise(choices))

    expected = sum(np.mean([same(order) for order in orders(part)]) for part in (first, second)) / 7
    frame = baselines.persistence(trace, permutations=4000)
    assert frame["first"][0] == pytest.approx(3 / 7)
    assert frame["null_mean"][0] == pytest.approx(expected, abs=0.01)


def test_coactivation_null_is_the_mean_over_all_choices_with_these_loads() -> None:
    """Every way to give four tokens of one document two experts each, with the observed loads, by writing them out."""
    observed = np.array([[0, 1], [0, 1], [2, 3], [0, 2]])
    loads = np.bincount(observed.ravel(), minlength=4)
    sets = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    ways = [
        [sets[n] for n in np.unravel_index(code, (6,) * 4)]
        for code in range(6**4)
        if np.array_equal(
            np.bincount(np.ravel([sets[n] for n in np.unravel_index(code, (6,) * 4)]), minlength=4), loads
        )
    ]
    expected = {pair: np.mean([way.count(pair) for way in ways]) for pair in sets}
    trace = trace_of(observed, documents=[0] * 4)
    frame = baselines.coactivation_pairs(trace, permutations=4000)
    found = {(row.expert_i, row.expert_j): row.expected for row in frame.itertuples()}
    assert found == pytest.approx(expected, abs=0.06)
    assert frame["tokens"].tolist() == [2, 1, 0, 0, 0, 1]


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_a_draw_keeps_loads_of_documents_and_experts_of_tokens(seed: int) -> None:
    rng = np.random.default_rng(seed)
    indices = np.argsort(rng.random((2, 40, 5)), axis=-1)[..., :3]
    indices[:, rng.random(40) < 0.2, 1] = -1
    documents = rng.integers(0, 4, 40)
    trace = trace_of(indices, num_experts=5, documents=documents, router_scores=np.zeros(indices.shape))
    texts = permutation.documents(trace)
    chain = permutation.PairChain(trace.router_indices, texts, rng)
    ordered = trace.document_ids[texts.order]
    for slots in chain.draws(4):
        drawn = slots.reshape(3, 2, 40).transpose(1, 2, 0)
        assert np.array_equal((drawn < 0).sum(axis=-1), (indices[:, texts.order] < 0).sum(axis=-1))
        for layer in range(2):
            for document in range(4):
                before, after = indices[layer, documents == document], drawn[layer, ordered == document]
                assert np.array_equal(np.sort(before, axis=None), np.sort(after, axis=None))
            used = [row[row >= 0] for row in drawn[layer]]
            assert all(len(set(row.tolist())) == len(row) for row in used)


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=25, deadline=None)
def test_shuffles_stay_within_documents(seed: int, turned: bool) -> None:
    rng = np.random.default_rng(seed)
    documents = rng.integers(0, 5, 30)
    texts = permutation.documents(trace_of(np.zeros((30, 1), int), documents=documents))
    place = texts.rotation(rng) if turned else texts.shuffle(rng)
    assert np.array_equal(np.sort(place), np.arange(30))
    assert np.array_equal(texts.of_token[place], texts.of_token)
    if turned:  # neighbours stay neighbours, round the corner too
        step = (texts.local[place] - texts.local) % texts.size
        assert all(len(set(step[texts.of_token == d].tolist())) == 1 for d in range(len(texts.sizes)))


def test_tokens_without_documents_are_shuffled_within_their_domain() -> None:
    trace = random_trace(0, planted="vocabulary", layers=1)
    alone = RoutingTrace.from_arrays(
        router_indices=trace.router_indices,
        router_scores=trace.router_scores,
        num_experts=trace.num_experts,
        token_ids=trace.token_ids,
        domain_ids=trace.domain_ids,
        domains=trace.domains,
    )
    assert baselines.vocabulary(alone, permutations=39)["verdict"][0] == VOCABULARY_FINDING.clearly
    frame = baselines.persistence(alone, permutations=39)
    assert persistence_verdict(frame) == "This cannot be tested: no two tokens are neighbours."
    assert frame[["null_mean", "p_value", "p_adjusted", "effect", "low"]].isna().all(axis=None)


def test_what_cannot_be_tested_is_said_and_not_found() -> None:
    one = trace_of(np.arange(40)[:, None] % 4, documents=np.arange(40) // 10)
    assert coactivation_verdict(baselines.coactivation(one)) == ("This cannot be tested: no token has two experts.")
    assert baselines.coactivation_pairs(one)["uncertain"].all()
    rare = trace_of(np.arange(40)[:, None] % 4, documents=np.arange(40) // 10, token_ids=np.arange(40))
    assert "no token occurs often enough" in vocabulary_verdict(baselines.vocabulary(rare))
    with pytest.raises(TraceError, match="predicted_ids"):
        baselines.vocabulary(rare, which="predicted")
    cells = baselines.domain_cells(one)
    assert cells["uncertain"].all()
    assert cells["p_value"].isna().all()


def test_a_text_that_changes_its_subject_is_no_vocabulary_and_no_flow() -> None:
    """Tokens in runs and experts in runs, each by chance: a free shuffle would call that a connection."""
    found = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        tokens, *layers = (_runs(rng, 600) for _ in range(3))
        trace = trace_of(np.stack(layers)[..., None], token_ids=tokens, documents=np.arange(600) // 100)
        tests = baselines.vocabulary(trace, permutations=39), baselines.layer_flow(trace, permutations=39)
        found += sum(bool((frame["verdict"] != baselines.CHANCE).any()) for frame in tests)
    assert found <= 7  # 2 of 40 expected; a free shuffle finds 35


def _runs(rng: np.random.Generator, length: int) -> np.ndarray:
    """Numbers 0..3, each kept for some ten places."""
    changes = np.cumsum(rng.random(length) < 0.1)
    return rng.integers(0, 4, changes[-1] + 1)[changes]


USED = [f"{of}{what}" for of in ("", "tested_", "trace_") for what in ("tokens", "documents")]


@pytest.mark.parametrize("stored", [False, True])
def test_of_large_traces_the_test_is_of_a_sample_and_the_size_of_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stored: bool
) -> None:
    monkeypatch.setattr(permutation, "MAX_NULL_TOKENS", 200)
    monkeypatch.setattr(trace_module, "PART_TOKENS", 60)
    trace = random_trace(0, layers=2, planted="vocabulary")
    path = tmp_path / "x.parquet"
    trace.save(path)
    whole: AnyTrace = StoredTrace.open(path) if stored else trace
    for baseline, of_all in (
        (baselines.persistence, metrics.persistence(trace)["first"]),
        (baselines.vocabulary, metrics.vocabulary_specialization(trace).groupby("layer")["share"].mean()),
        (baselines.layer_flow, None),
    ):
        frame = baseline(whole, permutations=19)
        assert frame[USED].to_numpy().tolist() == [[600, 24, 200, 8, 600, 24]] * len(frame)
        if of_all is not None:
            assert frame.iloc[:, 1].to_numpy() == pytest.approx(of_all.to_numpy())
        assert (frame["null_mean"] < frame["null_p99"]).all()
        pd.testing.assert_frame_equal(frame, baseline(trace, permutations=19))
    assert baselines.coactivation(whole, permutations=3)[USED].to_numpy().tolist() == [[200, 8, 200, 8, 600, 24]] * 2
    assert "from 200 of 600 tokens, 8 of 24 documents" in vocabulary_verdict(baselines.vocabulary(whole))


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_the_mean_of_a_null_over_all_tokens_is_that_of_its_draws(seed: int) -> None:
    """What a large trace's size is held against, computed apart, agrees with draws that look at every token."""
    trace = random_trace(seed, layers=2, alike=1.0, planted="persistence", strength=1.0)
    types = token_types(trace, "input", 10)
    for mean, frame in (
        (flow._null_of_all_tokens(trace, seed), baselines.layer_flow(trace, permutations=60)),
        (vocabulary._null_of_all(trace, types, "input", seed), baselines.vocabulary(trace, permutations=60)),
    ):
        spread = (frame["null_p99"] - frame["null_mean"]).to_numpy()
        assert (np.abs(mean - frame["null_mean"].to_numpy()) < spread).all()


def test_pooled_p_values_by_hand() -> None:
    """Two cells, two draws each: distances to the mean of all three, in standard deviations of all three."""
    pool = Pool()
    pool.add(np.array([[9.0, 5.0, 7.0], [3.0, 5.0, 1.0], [3.0, 5.0, 4.0]]), np.array([True, True, False]))
    # Cell 0: mean 5, deviation sqrt(8): 1.41, draws .71, .71. Cell 1 never varies, cell 2 is not to be tested.
    assert pool.p_values() == pytest.approx([1 / 3, np.nan, np.nan], nan_ok=True)
    pool.add(np.array([[6.0], [2.0], [10.0]]), np.array([True]))
    # Cell 3: mean 6: observed 0, draws 1.22 and 1.22. All draws: .71 .71 1.22 1.22.
    assert pool.p_values() == pytest.approx([1 / 5, np.nan, np.nan, 1], nan_ok=True)


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_pooled_p_values_of_one_normal_law_are_the_normals(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(201, 200)) * rng.uniform(0.1, 10, 200)
    values[0, 0] = 3 * values[1:, 0].std() + values[1:, 0].mean()
    pool = Pool()
    pool.add(values, np.ones(200, dtype=bool))
    p_values = pool.p_values()
    assert p_values[0] == pytest.approx(2 * stats.norm.sf(3), abs=0.002)
    assert p_values.min() >= 1 / (200 * 200 + 1)


def test_domain_cells_agree_with_the_measure_and_are_fewer() -> None:
    trace = random_trace(2, skew=0.5, alike=1.0)
    cells, plain = baselines.domain_cells(trace), metrics.domain_specialization(trace)
    pd.testing.assert_frame_equal(cells[plain.columns.drop("uncertain")], plain.drop(columns="uncertain"))
    # What text of any domain gives is the share over all tokens, up to the sources' sizes, which are equal here.
    share = plain.groupby(["layer", "expert"])["share"].transform("mean")
    assert cells["expected"].to_numpy() == pytest.approx(share.to_numpy(), abs=0.02)
    assert (~cells["uncertain"]).sum() < (~plain["uncertain"]).sum()


def test_bootstrap_of_a_mean_is_scipys() -> None:
    """Share of expert 0 over documents of equal size: the plain bootstrap of a mean, but for Student's widening."""
    rng = np.random.default_rng(0)
    own = rng.binomial(50, rng.beta(4, 6, 30))
    indices = np.concatenate([np.repeat([0, 1], [n, 50 - n]) for n in own])
    trace = trace_of(indices[:, None], num_experts=2, documents=np.repeat(np.arange(30), 50))
    frame = baselines.bootstrap(trace, lambda c: c[..., 0].sum(-1) / c.sum((-1, -2)), resamples=4000)
    assert frame["value"][0] == pytest.approx(own.mean() / 50)
    assert frame["sources"][0] == 30
    theirs = stats.bootstrap((own / 50,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    widen = np.sqrt(30 / 29) * stats.t.ppf(0.975, 29) / stats.norm.ppf(0.975)
    mean = own.mean() / 50
    assert mean - frame["low"][0] == pytest.approx(widen * (mean - theirs.low), rel=0.08)
    assert frame["high"][0] - mean == pytest.approx(widen * (theirs.high - mean), rel=0.08)


def test_bootstrap_needs_two_sources_and_two_resamples() -> None:
    trace = trace_of(np.arange(20)[:, None] % 4, documents=[0] * 20)

    def load_imbalance(counts: Any) -> Any:
        return counts.sum(-2).max(-1) / counts.sum(-2).mean(-1)

    frame = baselines.bootstrap(trace, load_imbalance)
    assert frame["value"].tolist() == [1.0]
    assert frame[["low", "high"]].isna().all(axis=None)
    with pytest.raises(UsageError, match="resamples is 1"):
        baselines.bootstrap(trace, load_imbalance, resamples=1)


def test_units_are_sources_or_random_groups_of_one_domain() -> None:
    few = trace_of(np.zeros((12, 1), int), documents=np.arange(12) // 2, domain_ids=[0] * 6 + [1] * 4 + [2] * 2,
                   domains=["a", "b", "c"])  # fmt: skip
    drawn = units(blocks(few), seed=0)
    assert drawn.of_block.tolist() != [0] * 6
    assert drawn.count == 6
    # The only source of domain c cannot show how its sources differ: it is drawn with those of the largest domain.
    assert sorted(np.unique(drawn.stratum, return_counts=True)[1].tolist()) == [2, 4]
    many = trace_of(np.zeros((3000, 1), int), documents=np.arange(3000), domain_ids=np.arange(3000) % 3 // 2,
                    domains=["a", "b"])  # fmt: skip
    parts = blocks(many)
    drawn = units(parts, seed=0)
    assert drawn.count == pytest.approx(MAX_UNITS, abs=2)
    weights = drawn.weights(3, np.random.default_rng(0))
    assert weights.sum(axis=1).tolist() == [drawn.count] * 3
    domain_of_unit = np.zeros(drawn.count, int)
    domain_of_unit[drawn.of_block] = parts.domain_ids
    assert np.array_equal(domain_of_unit[drawn.of_block], parts.domain_ids)


def test_strength_by_hand() -> None:
    """Half the tokens choose experts 0 and 1, half 2 and 3: of six equally likely pairs two carry everything."""
    indices = np.array([[0, 1], [2, 3]] * 300)
    frame = baselines.coactivation(trace_of(indices, documents=np.arange(600) // 60), permutations=200)
    assert frame["strength"][0] == pytest.approx(2 / 3, abs=0.02)
    assert frame["verdict"][0] == COACTIVATION_FINDING.clearly
    pairs = baselines.coactivation_pairs(trace_of(indices, documents=np.arange(600) // 60))
    assert pairs["lift_over_chance"].round(1).tolist() == [3.0, 0.0, 0.0, 0.0, 0.0, 3.0]
    assert not pairs["uncertain"].any()
