"""Two routings held against each other: by hand, by law, calibrated, and against scipy and scikit-learn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import false_discovery_control, ttest_ind, ttest_rel
from sklearn.metrics import jaccard_score

from moe_core.errors import TraceError
from moe_core.routing import RoutingTrace, metrics


def trace_of(indices: Any, *, num_experts: int, **fields: Any) -> RoutingTrace:
    """A trace whose slots are in the order of their weight."""
    chosen = np.asarray(indices)
    K = chosen.shape[-1]
    fields.setdefault("token_ids", np.zeros(chosen.shape[-2], int))
    weights = np.where(chosen < 0, 0.0, np.arange(K, 0, -1) / K)
    return RoutingTrace.from_arrays(router_indices=chosen, router_scores=weights, num_experts=num_experts, **fields)


def random_trace(seed: int, *, L: int = 2, T: int = 80, K: int = 2, E: int = 5, drop: float = 0.1) -> RoutingTrace:
    """Routing is another for every seed, the text is the same."""
    rng = np.random.default_rng(seed)
    chosen = np.argsort(rng.gumbel(size=(L, T, E)), axis=-1)[..., :K]
    documents = np.arange(T) // 8
    return trace_of(
        np.where(rng.random((L, T, K)) < drop, -1, chosen),
        num_experts=E,
        token_ids=np.arange(T) % 7,
        document_ids=documents,
        domain_ids=documents % 3,
        domains=["a", "b", "c"],
    )


def renamed(trace: RoutingTrace, new_name: np.ndarray) -> RoutingTrace:
    indices = np.where(trace.router_indices < 0, -1, new_name[trace.router_indices]).astype(np.int16)
    return replace(trace, router_indices=indices)


def sets_of(trace: RoutingTrace, row: int) -> list[set[int]]:
    return [{int(e) for e in slots if e >= 0} for slots in trace.router_indices[row]]


def test_saturation_by_hand() -> None:
    last = trace_of([[0, 1], [2, 3], [0, 2]], num_experts=4, layers=[5])
    early = trace_of([[1, 2], [2, 3], [3, -1]], num_experts=4, layers=[5])
    frame = metrics.saturation({20: last, 10: early})
    assert frame[["step", "layer"]].to_numpy().tolist() == [[10, 5], [20, 5]]
    assert frame["first"].tolist() == pytest.approx([1 / 3, 1])
    assert frame["top_k"].tolist() == pytest.approx([3 / 6, 1])
    # Early, experts 0..3 have 0, 1, 2, 2 of 3 tokens; in the end 2, 1, 2, 1 of the 6 choices.
    assert frame["chance_top_k"].tolist() == pytest.approx(
        [(1 * 1 + 2 * 2 + 2 * 1) / 3 / 6, (2 * 2 + 1 + 2 * 2 + 1) / 3 / 6]
    )


def test_the_chance_of_saturation_is_that_of_independent_routers() -> None:
    rng = np.random.default_rng(0)
    noise = rng.gumbel(size=(2, 20_000, 8)) + np.arange(8) / 3
    first, second = (trace_of(np.argsort(-scores, axis=-1)[..., :2], num_experts=8) for scores in noise)
    row = metrics.saturation({0: first, 1: second}).iloc[0]
    assert row["top_k"] == pytest.approx(row["chance_top_k"], abs=0.01)
    assert row["chance_top_k"] > 0.28  # even load has 2/8
    even = trace_of([[0, 1], [1, 2], [2, 3], [3, 0]], num_experts=4)
    assert metrics.saturation({0: even, 1: even})["chance_top_k"].tolist() == [0.5, 0.5]


def test_saturation_without_choices_in_the_end_is_unknown() -> None:
    frame = metrics.saturation({0: trace_of([[0]], num_experts=2), 1: trace_of([[-1]], num_experts=2)})
    assert frame[["first", "top_k", "chance_top_k"]].isna().all(axis=None)
    with pytest.raises(TraceError, match="there are no traces"):
        metrics.saturation({})


def test_diff_by_hand() -> None:
    fields: dict[str, Any] = {"num_experts": 4, "document_ids": [0, 0, 1, 1]}
    logits = np.log(np.array([[0.5, 0.3, 0.1, 0.1], [0.4, 0.4, 0.1, 0.1], [0.3, 0.3, 0.2, 0.2], [0.1, 0.1, 0.1, 0.7]]))
    a = trace_of([[0, 1], [0, 1], [0, 1], [3, -1]], router_logits=logits, **fields)
    b = trace_of([[0, 1], [1, 0], [0, 2], [-1, -1]], **fields)
    row = metrics.routing_diff(a, b).iloc[0]
    assert (row["layer"], row["tokens"]) == (0, 4)
    assert row["flip_rate"] == 0.5  # another order is the same set
    assert row["first_flip_rate"] == 0.5
    assert row["jaccard"] == pytest.approx((1 + 1 + 1 / 3 + 0) / 4)
    assert row["jsd"] == pytest.approx(jensenshannon([3, 3, 0, 1], [3, 2, 1, 0]) ** 2)
    assert row["margin_kept"] == pytest.approx((0.2 + 0.3) / 2, abs=1e-3)  # logits are float16
    assert row["margin_flipped"] == pytest.approx((0.1 + 0.0) / 2, abs=1e-3)
    # Document 0 never flips, 1 always: drawing both anew gives 0, 1/2 or 1.
    assert (row["low"], row["high"]) == (0, 1)


def test_a_trace_does_not_differ_from_itself() -> None:
    trace = random_trace(1)
    frame = metrics.routing_diff(trace, trace)
    assert frame[["flip_rate", "first_flip_rate", "jsd", "low", "high"]].to_numpy().tolist() == [[0.0] * 5] * 2
    assert frame["jaccard"].tolist() == [1.0, 1.0]
    assert frame[["margin_flipped", "margin_kept"]].isna().all(axis=None)
    one_source = replace(trace, source_ids=np.zeros_like(trace.source_ids))
    assert metrics.routing_diff(one_source, trace)[["low", "high"]].isna().all(axis=None)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), K=st.integers(1, 4))
def test_diff_agrees_with_scikit_learn_and_scipy(seed: int, K: int) -> None:
    a, b = random_trace(seed, K=K), random_trace(seed + 1, K=2)
    frame = metrics.routing_diff(a, b)
    for row in range(2):
        one, other = sets_of(a, row), sets_of(b, row)
        assert frame["flip_rate"][row] == pytest.approx(np.mean([s != r for s, r in zip(one, other, strict=True)]))
        member = [np.array([[e in s for e in range(5)] for s in sets], dtype=int) for sets in (one, other)]
        expected = jaccard_score(member[0], member[1], average="samples", zero_division=1.0)
        assert frame["jaccard"][row] == pytest.approx(expected)
        loads = [m.sum(axis=0) for m in member]
        assert frame["jsd"][row] == pytest.approx(jensenshannon(*loads) ** 2, abs=1e-9)
        assert 0 <= frame["low"][row] <= frame["flip_rate"][row] <= frame["high"][row] <= 1


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_renaming_the_experts_of_both_changes_nothing(seed: int) -> None:
    new_name = np.random.default_rng(seed).permutation(5)
    traces = random_trace(seed), random_trace(seed + 1)
    others = [renamed(trace, new_name) for trace in traces]
    pd.testing.assert_frame_equal(metrics.routing_diff(*traces), metrics.routing_diff(*others))
    pd.testing.assert_frame_equal(
        metrics.saturation(dict(enumerate(traces))), metrics.saturation(dict(enumerate(others)))
    )
    before, after = (metrics.routing_movers(*pair) for pair in (traces, others))
    keys = ["layer", "expert", "domain"]
    before = before.assign(expert=new_name[before["expert"]]).sort_values(keys, ignore_index=True)
    pd.testing.assert_frame_equal(before, after.sort_values(keys, ignore_index=True))


@pytest.mark.parametrize("number", [5, 20])
def test_the_interval_of_the_flip_rate_holds_the_truth(number: int) -> None:
    """Sources flip a fifth of their tokens on average, each in its own measure."""
    held, widths, T = 0, [], 30 * number
    for seed in range(100):
        rng = np.random.default_rng(seed)
        rates = rng.beta(2, 8, number).repeat(30)
        a = np.zeros((T, 1), int)
        b = (rng.random(T) < rates).astype(int)[:, None]
        sources = np.arange(T) // 30
        traces = [trace_of(x, num_experts=2, document_ids=np.arange(T) // 15, source_ids=sources) for x in (a, b)]
        row = metrics.routing_diff(*traces).iloc[0]
        held += row["low"] <= 0.2 <= row["high"]
        widths.append(row["high"] - row["low"])
    assert 90 <= held <= 99
    assert np.mean(widths) > 1.2 * 4 * np.sqrt(0.16 / T)  # what independent tokens would have


def test_movers_by_hand() -> None:
    fields: dict[str, Any] = {
        "num_experts": 3,
        "token_ids": np.arange(8),
        "document_ids": np.arange(8) // 2,
        "domain_ids": [0, 0, 0, 0, 1, 1, 1, 1],
        "domains": ["law", "code", "none"],
        "layers": [4],
    }
    a = trace_of([[0], [0], [0], [1], [1], [1], [1], [1]], **fields)
    b = trace_of([[0], [0], [0], [1], [2], [2], [2], [2]], **fields)
    frame = metrics.routing_movers(a, b)
    assert len(frame) == 9  # 3 experts of all, law and code
    assert frame["change"].abs().is_monotonic_decreasing
    cells = frame.set_index(["domain", "expert"])
    assert cells.loc[("code", 2), ["layer", "share_a", "share_b", "change", "low", "high"]].tolist() == [
        4,
        0,
        1,
        1,
        1,
        1,
    ]
    assert cells.loc[("code", 1), "change"] == -1
    # Every source of it did the same, but of two sources every second change of nothing does.
    assert cells.loc[("code", 1), "uncertain"]
    assert np.isnan(cells.loc[("code", 1), "p_adjusted"])
    assert cells.loc[("all", 1), ["share_a", "share_b"]].tolist() == pytest.approx([5 / 8, 1 / 8])
    assert cells.loc[("law", 1), ["share_a", "share_b", "change", "uncertain"]].tolist() == [0.25, 0.25, 0, True]


@pytest.mark.parametrize(("sources", "certain"), [(5, False), (6, True)])
def test_six_sources_that_do_the_same_are_certain_and_five_are_not(sources: int, certain: bool) -> None:
    fields: dict[str, Any] = {"num_experts": 2, "token_ids": np.arange(2 * sources)}
    fields["document_ids"] = np.arange(2 * sources) // 2
    a, b = (trace_of(np.full((2 * sources, 1), expert), **fields) for expert in (0, 1))
    frame = metrics.routing_movers(a, b)
    assert (~frame["uncertain"]).tolist() == [certain] * 2
    assert frame["p_adjusted"].tolist() == pytest.approx([1 / 32 if certain else np.nan] * 2, nan_ok=True)


@pytest.mark.parametrize("lengths", [(30, 30), (10, 10, 10, 10), (100,) * 4, (20,) * 5 + (500,)], ids=str)
def test_few_sources_of_random_routing_have_no_movers(lengths: tuple[int, ...]) -> None:
    """Student's t alone found one in 8 to 82 of 100 such pairs: changes of few tokens are equal by accident."""
    found = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        T, taste = sum(lengths), np.linspace(0, 2, 8)
        a, b = (
            trace_of(
                np.argsort(-rng.gumbel(size=(T, 8)) - taste, axis=1)[:, :2],
                num_experts=8,
                token_ids=np.zeros(T, int),
                document_ids=np.repeat(np.arange(len(lengths)), lengths),
            )
            for _ in range(2)
        )
        found += bool((~metrics.routing_movers(a, b)["uncertain"]).any())
    assert found <= 7  # of 40 at 5 %: more than 7 has a chance of 0.1 %


def test_movers_agree_with_the_t_tests_of_scipy() -> None:
    """With sources of one size the shares of the sources are a sample, and the bootstrap error theirs."""
    rng = np.random.default_rng(0)
    sources = np.repeat(np.arange(200), 10)
    fields: dict[str, Any] = {"num_experts": 3, "document_ids": sources}
    taste = rng.normal(size=(200, 3))[sources]
    a, b = (
        trace_of(np.argmax(taste + rng.gumbel(size=(2000, 3)) + [0, 0, shift], axis=1)[:, None], **fields)
        for shift in (0.0, 0.12)
    )
    apart = replace(b, token_ids=b.token_ids + 1)
    share = [
        np.array([[(trace.router_indices[0, sources == n, 0] == e).mean() for e in range(3)] for n in range(200)])
        for trace in (a, b)
    ]
    for other, expected in (
        (b, ttest_rel(share[1], share[0])),
        (apart, ttest_ind(share[1], share[0], equal_var=False)),
    ):
        frame = metrics.routing_movers(a, other).sort_values("expert", ignore_index=True)
        interval = expected.confidence_interval(0.95)
        assert frame["low"].to_numpy() == pytest.approx(interval.low, abs=0.006)
        assert frame["high"].to_numpy() == pytest.approx(interval.high, abs=0.006)
        adjusted = false_discovery_control(expected.pvalue)
        assert np.abs(np.log10(frame["p_adjusted"].to_numpy()) - np.log10(adjusted)).max() < 0.5
    paired, unpaired = (metrics.routing_movers(a, other).iloc[0] for other in (b, apart))
    # What a source has of its own cancels out where it is in both.
    assert paired["high"] - paired["low"] < 0.85 * (unpaired["high"] - unpaired["low"])


@pytest.mark.parametrize("shift", [0, 1])
def test_the_intervals_of_three_sources_are_those_of_scipy(shift: int) -> None:
    """Resampling three sources sees only two thirds of their variance, and their t is far from normal."""
    sources = np.repeat(np.arange(3), 10)
    counts = ([4, 5, 7], [5, 8, 9])
    a, b = (
        trace_of(np.concatenate([np.arange(10) < n for n in own]).astype(int)[:, None], num_experts=2,
                 document_ids=sources, token_ids=np.full(30, shift * side))
        for side, own in enumerate(counts)
    )  # fmt: skip
    share = [np.array(own) / 10 for own in counts]
    expected = ttest_ind(share[1], share[0], equal_var=False) if shift else ttest_rel(share[1], share[0])
    frame = metrics.routing_movers(a, b).set_index("expert")
    interval = expected.confidence_interval(0.95)
    assert frame["change"][1] == pytest.approx(0.2)
    assert (frame["low"][1], frame["high"][1]) == pytest.approx((interval.low, interval.high), abs=0.03)


@pytest.mark.parametrize("paired", [True, False])
def test_nothing_moves_where_nothing_changed(paired: bool) -> None:
    """One taste per source, drawn anew for each text: in at most about one of twenty comparisons anything is found."""
    wrong, held = 0, []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        sources = np.repeat(np.arange(30), 20)
        tastes = rng.normal(size=(2, 30, 6)) / 2
        traces = [
            trace_of(
                np.argmax(taste[sources] + rng.gumbel(size=(600, 6)), axis=1)[:, None],
                num_experts=6,
                token_ids=np.full(600, 0 if paired else side),
                document_ids=sources,
                domain_ids=sources % 2,
                domains=["a", "b"],
            )
            for side, taste in enumerate(tastes[[0, 0]] if paired else tastes)
        ]
        frame = metrics.routing_movers(*traces)
        wrong += not frame["uncertain"].all()
        held.append(((frame["low"] <= 0) & (frame["high"] >= 0)).mean())
    assert wrong <= 8
    assert 0.92 < np.mean(held) < 0.98


def test_a_planted_mover_is_found_in_texts_that_differ() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        sources = np.repeat(np.arange(20), 20)
        a, b = (
            trace_of(
                np.argmax(rng.gumbel(size=(400, 4)) + [[0, 0, 0, move]] * (sources % 2)[:, None], axis=1)[:, None],
                num_experts=4,
                token_ids=rng.integers(0, 9, 400),
                document_ids=sources,
                domain_ids=sources % 2,
                domains=domains,
            )
            for move, domains in ((0.0, ["a", "b"]), (1.5, ["a", "b"]))
        )
        best = metrics.routing_movers(a, b).iloc[0]
        assert (best["expert"], best["domain"]) == (3, "b")
        assert best["low"] > 0
        assert not best["uncertain"]


def test_movers_match_domains_by_name_and_cannot_tell_from_one_source() -> None:
    a = trace_of([[0]] * 4, num_experts=2, domain_ids=[0, 0, 1, 1], domains=["x", "y"])
    b = trace_of([[1]] * 3, num_experts=2, document_ids=[0, 0, 0], domain_ids=[1, 1, 0], domains=["z", "y"])
    frame = metrics.routing_movers(a, b)
    assert sorted(set(frame["domain"])) == ["all", "y"]
    assert frame["uncertain"].all()
    assert frame[["low", "high", "p_adjusted"]].isna().all(axis=None)
    assert frame["change"].abs().tolist() == [1.0] * 4


def test_many_sources_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    from moe_core.routing.statistics import bootstrap

    a, b = random_trace(0, T=800), random_trace(1, T=800)
    expected = metrics.routing_diff(a, b), metrics.routing_movers(a, b)
    monkeypatch.setattr(bootstrap, "TOTALS_BLOCKS", 40)
    found = metrics.routing_diff(a, b), metrics.routing_movers(a, b)
    assert found[0]["flip_rate"].tolist() == expected[0]["flip_rate"].tolist()
    for one, other in zip(found, expected, strict=True):
        widths = [(frame["high"] - frame["low"]).mean() for frame in (one, other)]
        assert widths[0] != widths[1]
        assert widths[0] == pytest.approx(widths[1], rel=0.3)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), K=st.integers(1, 3))
def test_match_finds_the_experts_that_were_renamed(seed: int, K: int) -> None:
    trace = random_trace(seed, K=K, T=200)
    new_name = np.random.default_rng(seed).permutation(5)
    frame = metrics.match_experts(trace, renamed(trace, new_name))
    assert frame["expert_b"].tolist() == new_name[frame["expert_a"]].tolist()
    assert frame["overlap"].tolist() == [1.0] * 10


def test_match_by_hand() -> None:
    a = trace_of([[0], [0], [0], [1], [1], [2]], num_experts=3)
    b = trace_of([[1], [1], [0], [0], [0], [0]], num_experts=4)
    frame = metrics.match_experts(a, b)
    assert frame[["layer", "expert_a", "expert_b"]].to_numpy()[:2].tolist() == [[0, 0, 1], [0, 1, 0]]
    assert frame["overlap"].tolist()[:2] == pytest.approx([2 / 3, 2 / 4])
    assert frame["overlap"][2] == 0  # expert 2 is left with one that has no tokens
    nobody = metrics.match_experts(trace_of([[0]], num_experts=2), trace_of([[0]], num_experts=2))
    assert np.isnan(nobody["overlap"][1])


def test_unrelated_experts_overlap_as_the_docstring_says() -> None:
    a, b = random_trace(0, T=60_000, drop=0.0), random_trace(1, T=60_000, drop=0.0)
    assert metrics.match_experts(a, b)["overlap"].mean() == pytest.approx(0.4 / 1.6, abs=0.01)


COMPARISONS = (
    metrics.routing_diff,
    metrics.match_experts,
    lambda a, b: metrics.saturation({0: a, 1: b}),
)


@pytest.mark.parametrize("compare", COMPARISONS)
def test_what_cannot_be_compared_is_refused_with_the_reason(compare: Any) -> None:
    trace = random_trace(0)
    with pytest.raises(TraceError, match="80 and 79 tokens; expected traces of the same text"):
        compare(trace, trace.select(np.arange(80) < 79))
    ids = trace.token_ids.copy()
    ids[17] += 1
    with pytest.raises(TraceError, match="different tokens, first at token 17"):
        compare(trace, replace(trace, token_ids=ids))
    with pytest.raises(TraceError, match="different positions in their documents, first at token 0"):
        compare(trace, replace(trace, positions=trace.positions + np.int32(1)))
    with pytest.raises(TraceError, match="different tokenizers: token 3 is 'x' in one and 'y' in the other"):
        compare(replace(trace, vocabulary={3: "x", 4: "z"}), replace(trace, vocabulary={3: "y"}))
    with pytest.raises(TraceError, match=r"layers \[0, 1\] and \[0, 2\]; expected the same layers"):
        compare(trace, replace(trace, layers=[0, 2]))


@pytest.mark.parametrize("compare", [metrics.routing_movers, *COMPARISONS[::2]])
def test_other_numbers_of_experts_are_refused(compare: Any) -> None:
    trace = random_trace(0)
    with pytest.raises(TraceError, match="5 and 6 experts; expected as many in both"):
        compare(trace, replace(trace, num_experts=6))
