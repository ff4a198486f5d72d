"""Which tokens belong to which expert, and what decides a choice: by hand, by law, and against scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy as scipy_entropy
from scipy.stats import hypergeom
from sklearn.metrics import mutual_info_score
from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

from moe_core.errors import TraceError, UsageError
from moe_core.routing import RoutingTrace, metrics
from moe_core.routing.measures import tokens
from moe_core.routing.measures.chance import expected_xlogx
from moe_core.routing.trace import trace as trace_file


def trace_of(indices: Any, *, num_experts: int, **fields: Any) -> RoutingTrace:
    """A trace with equal weights on the used slots of `indices` [T,K] or [L,T,K]."""
    chosen = np.asarray(indices)
    fields.setdefault("token_ids", np.zeros(chosen.shape[-2], int))
    scores = np.where(chosen < 0, 0.0, 1.0 / chosen.shape[-1])
    return RoutingTrace.from_arrays(router_indices=chosen, router_scores=scores, num_experts=num_experts, **fields)


def random_trace(seed: int, *, L: int = 2, T: int = 90, K: int = 2, E: int = 5, drop: float = 0.1) -> RoutingTrace:
    rng = np.random.default_rng(seed)
    chosen = np.argsort(rng.random((L, T, E)), axis=-1)[..., :K]
    documents = np.sort(rng.integers(0, 9, T))
    return trace_of(
        np.where(rng.random((L, T, K)) < drop, -1, chosen),
        num_experts=E,
        token_ids=rng.integers(0, 6, T) ** 2,
        document_ids=documents,
        domain_ids=documents % 3,
        domains=["a", "b", "c"],
        predicted_ids=rng.integers(0, 4, T),
        vocabulary={0: "the", 1: " of"},
    )


def renamed(trace: RoutingTrace, new_name: np.ndarray) -> RoutingTrace:
    indices = np.where(trace.router_indices < 0, -1, new_name[trace.router_indices])
    return trace_of(
        indices,
        num_experts=trace.num_experts,
        token_ids=trace.token_ids,
        document_ids=trace.document_ids,
        domain_ids=trace.domain_ids,
        domains=trace.domains,
        vocabulary=trace.vocabulary,
    )


def test_vocabulary_by_hand() -> None:
    trace = trace_of(
        [[0, 1], [0, 2], [1, 2], [2, -1]], num_experts=4, token_ids=[7, 7, 7, 9], vocabulary={7: "cat"}, layers=[3]
    )
    frame = metrics.vocabulary_specialization(trace, min_count=1)
    # Expert 0 has 2 of 4 tokens, 1 has 2, 2 has 3. Token 7: 0, 1 and 2 twice each of three, the lowest counts.
    expected = pd.DataFrame(
        {
            "layer": [3, 3],
            "token_id": [7, 9],
            "text": ["cat", "#9"],
            "tokens": [3, 1],
            "expert": [0, 2],
            "share": [2 / 3, 1.0],
            "lift": [(2 / 3) / (2 / 4), 1 / (3 / 4)],
        }
    )
    pd.testing.assert_frame_equal(frame, expected)
    assert metrics.vocabulary_specialization(trace, min_count=2)["token_id"].tolist() == [7]
    # Rare types are left out of the rows, not of the expert's share of all tokens.
    assert metrics.vocabulary_specialization(trace, min_count=2)["lift"][0] == pytest.approx(4 / 3)


def test_the_type_is_of_the_token_that_follows_in_the_document() -> None:
    trace = trace_of([[0], [1], [0], [1], [0]], num_experts=2, token_ids=[5, 6, 5, 6, 6], document_ids=[1, 1, 2, 2, 2])
    frame = metrics.vocabulary_specialization(trace, "next", min_count=1)
    # Counted: 5 -> 6 by expert 0, 5 -> 6 by 0, 6 -> 6 by 1; the last token of each document has no successor.
    assert frame[["token_id", "tokens", "expert", "share"]].to_numpy().tolist() == [[6, 3, 0, pytest.approx(2 / 3)]]
    assert frame["lift"][0] == pytest.approx(1)


def test_the_type_is_of_the_predicted_token_where_it_was_kept() -> None:
    fields: dict[str, Any] = {"num_experts": 2, "token_ids": [1, 2, 3]}
    frame = metrics.vocabulary_specialization(
        trace_of([[0], [0], [1]], predicted_ids=[8, 8, 9], **fields), "predicted", min_count=1
    )
    assert frame[["token_id", "tokens", "expert", "share", "lift"]].to_numpy().tolist() == [
        [8, 2, 0, 1, 1.5],
        [9, 1, 1, 1, 3],
    ]
    with pytest.raises(TraceError, match="no predicted_ids"):
        metrics.vocabulary_specialization(trace_of([[0], [0], [1]], **fields), "predicted")


def test_a_type_without_any_expert_has_none() -> None:
    frame = metrics.vocabulary_specialization(
        trace_of([[-1], [-1], [1]], num_experts=2, token_ids=[4, 4, 5]), min_count=1
    )
    assert frame["expert"].tolist() == [-1, 1]
    assert frame["share"].tolist() == [0, 1]
    assert np.isnan(frame["lift"][0])


def test_experts_that_see_no_difference_between_tokens() -> None:
    """Every type goes to every expert equally often: share K/E, lift 1."""
    pairs = [[0, 1], [1, 2], [2, 3], [3, 0]]
    trace = trace_of(pairs * 10, num_experts=4, token_ids=np.arange(10).repeat(4))
    frame = metrics.vocabulary_specialization(trace, min_count=4)
    assert frame["share"].tolist() == [0.5] * 10
    assert frame["lift"].tolist() == [1.0] * 10


def test_token_experts_by_hand() -> None:
    trace = trace_of(
        [[0, 1], [0, 2], [1, 2], [0, 1], [0, 3], [1, 2]], num_experts=4, token_ids=[7, 7, 7, 9, 9, 5], layers=[2]
    )
    frame = metrics.token_experts(trace, 2, 0, min_count=1)
    assert frame.columns.tolist() == ["token_id", "text", "tokens", "share", "lift"]
    # Expert 0 has 4 of 6 tokens; 5 never goes to it.
    assert frame[["token_id", "tokens"]].to_numpy().tolist() == [[9, 2], [7, 3]]
    assert frame["share"].tolist() == pytest.approx([1, 2 / 3])
    assert frame["lift"].tolist() == pytest.approx([1.5, 1])
    assert metrics.token_experts(trace, 2, 0, min_count=3)["token_id"].tolist() == [7]
    assert metrics.token_experts(trace, 2, 3, min_count=5).empty


def test_wrong_arguments_are_named() -> None:
    trace = random_trace(0)
    with pytest.raises(UsageError, match="which is 'output'; expected one of input, predicted, next"):
        metrics.vocabulary_specialization(trace, "output")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="min_count is 0"):
        metrics.context_independence(trace, min_count=0)
    with pytest.raises(TraceError, match="expert 5 is not in this trace; expected 0 to 4"):
        metrics.token_experts(trace, 0, 5)
    with pytest.raises(TraceError, match="layer 7 is not in this trace; expected one of 0, 1"):
        metrics.token_experts(trace, 7, 0)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), min_count=st.sampled_from([1, 10, 99]))
def test_vocabulary_is_the_contingency_table_of_scikit_learn(seed: int, min_count: int) -> None:
    trace = random_trace(seed)
    frame = metrics.vocabulary_specialization(trace, min_count=min_count)
    for row, layer in enumerate(trace.layers):
        used = trace.router_indices[row] >= 0
        ids = np.broadcast_to(trace.token_ids[:, None], used.shape)[used]
        types, occurrences = np.unique(trace.token_ids, return_counts=True)
        largest = contingency_matrix(ids, trace.router_indices[row][used]).max(axis=1)
        often = occurrences >= min_count
        own = frame[frame["layer"] == layer]
        assert own["token_id"].tolist() == types[often].tolist()
        assert (own["share"] * own["tokens"]).to_numpy() == pytest.approx(largest[often])
        for expert in range(trace.num_experts):
            told = metrics.token_experts(trace, layer, expert, min_count=min_count).set_index("token_id")
            best = own[own["expert"] == expert].set_index("token_id")
            assert told.loc[best.index, ["tokens", "share", "lift"]].equals(best[["tokens", "share", "lift"]])


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_renaming_experts_renames_the_answer(seed: int) -> None:
    trace = random_trace(seed)
    new_name = np.random.default_rng(seed).permutation(5)
    other = renamed(trace, new_name)
    before, after = (metrics.vocabulary_specialization(t, min_count=1) for t in (trace, other))
    assert before["share"].tolist() == after["share"].tolist()
    for expert in range(5):
        told = [
            metrics.token_experts(t, 1, e, min_count=1) for t, e in ((trace, expert), (other, int(new_name[expert])))
        ]
        pd.testing.assert_frame_equal(*told)
    pd.testing.assert_frame_equal(*(metrics.context_independence(t, min_count=2) for t in (trace, other)))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), cut=st.integers(0, 8))
def test_counts_of_two_parts_add_up(seed: int, cut: int) -> None:
    trace = random_trace(seed)
    types = tokens.token_types(trace, "next", 2)

    def counts(part: RoutingTrace) -> np.ndarray:
        return np.stack(
            list(tokens.layer_counts(part, lambda p: types.label(tokens.token_ids_of(p, "next")), len(types.ids) + 1))
        )

    first = trace.document_ids <= cut
    if first.any() and not first.all():
        assert np.array_equal(counts(trace.select(first)) + counts(trace.select(~first)), counts(trace))
    assert counts(trace).sum() == (trace.router_indices[:, tokens.consecutive(trace)[0]] >= 0).sum()


def test_a_trace_on_disk_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = random_trace(3)
    trace.save(tmp_path / "t.parquet")
    monkeypatch.setattr(trace_file, "PART_TOKENS", 20)
    monkeypatch.setattr(tokens, "TOGETHER", 1)  # one layer at a time
    opened = RoutingTrace.open(tmp_path / "t.parquet")
    assert len(list(opened.parts())) > 2
    for which in ("input", "predicted", "next"):
        pd.testing.assert_frame_equal(
            metrics.vocabulary_specialization(opened, which, 3), metrics.vocabulary_specialization(trace, which, 3)
        )
    pd.testing.assert_frame_equal(metrics.token_experts(opened, 1, 2), metrics.token_experts(trace, 1, 2))
    pd.testing.assert_frame_equal(
        metrics.context_independence(opened, min_count=3), metrics.context_independence(trace, min_count=3)
    )


def test_large_ids_are_found_without_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = random_trace(5)
    expected = metrics.vocabulary_specialization(trace, "next", 3), metrics.context_independence(trace, min_count=3)
    monkeypatch.setattr(tokens, "_TABLE", 0)
    pd.testing.assert_frame_equal(metrics.vocabulary_specialization(trace, "next", 3), expected[0])
    pd.testing.assert_frame_equal(metrics.context_independence(trace, min_count=3), expected[1])


def test_context_independence_at_its_ends() -> None:
    ids, domain = np.repeat(np.arange(4), 50), np.tile([0, 1], 100)
    fields: dict[str, Any] = {"token_ids": ids, "domain_ids": domain, "domains": ["a", "b"]}
    by_token = metrics.context_independence(trace_of(ids[:, None], num_experts=4, **fields)).iloc[0]
    assert by_token["token_share"] == pytest.approx(1)
    assert by_token["domain_share"] == pytest.approx(0, abs=1e-12)
    assert by_token["domain_beyond_token"] == pytest.approx(0, abs=1e-12)
    assert by_token["domain_beyond_chance"] == pytest.approx(0, abs=1e-12)  # the token leaves nothing to explain
    by_domain = metrics.context_independence(trace_of(domain[:, None], num_experts=4, **fields)).iloc[0]
    assert by_domain[["token_share", "domain_share", "domain_beyond_token"]].tolist() == pytest.approx([0, 1, 1])
    assert 0 < by_domain["domain_beyond_chance"] < 0.02
    # Each alone says nothing, both together all: an exclusive or.
    by_both = metrics.context_independence(trace_of(((ids + domain) % 2)[:, None], num_experts=2, **fields)).iloc[0]
    assert by_both[["token_share", "domain_share", "domain_beyond_token"]].tolist() == pytest.approx([0, 0, 1])
    assert (by_both["tokens"], by_both["token_types"]) == (200, 4)


def test_context_independence_without_anything_to_count() -> None:
    rare = metrics.context_independence(trace_of([[0], [1]], num_experts=2, token_ids=[1, 2])).iloc[0]
    assert (rare["tokens"], rare["token_types"]) == (0, 0)
    assert np.isnan(rare[["token_share", "token_chance", "domain_share", "domain_beyond_token"]].astype(float)).all()
    one_expert = metrics.context_independence(trace_of([[0], [0]], num_experts=2), min_count=1).iloc[0]
    assert np.isnan(one_expert["token_share"])
    nothing = metrics.context_independence(trace_of([[-1], [-1]], num_experts=2), min_count=1).iloc[0]
    assert np.isnan(nothing["token_chance"])


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), K=st.integers(1, 3))
def test_shares_agree_with_scikit_learn(seed: int, K: int) -> None:
    trace = random_trace(seed, K=K, drop=0.0)
    frame = metrics.context_independence(trace, min_count=1)
    for row in range(trace.num_layers):
        experts = trace.router_indices[row].reshape(-1)
        ids, domains = (np.repeat(values, K) for values in (trace.token_ids, trace.domain_ids))
        H = scipy_entropy(np.bincount(experts))
        assert frame["token_share"][row] == pytest.approx(mutual_info_score(ids, experts) / H, abs=1e-9)
        assert frame["domain_share"][row] == pytest.approx(mutual_info_score(domains, experts) / H, abs=1e-9)
        both = mutual_info_score(ids * 3 + domains, experts)
        assert frame["domain_beyond_token"][row] == pytest.approx(
            (both - mutual_info_score(ids, experts)) / H, abs=1e-9
        )
        if K == 1:
            contingency = contingency_matrix(ids, experts, sparse=True)
            expected = expected_mutual_information(contingency, len(ids)) / H
            assert frame["token_chance"][row] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("K", [1, 2, 4])
def test_chance_is_what_shuffled_tokens_and_domains_give(K: int) -> None:
    """Uneven experts that some tokens prefer, so that no two cells are alike."""
    rng = np.random.default_rng(K)
    T, E = 1500, 8
    ids, documents = np.minimum(rng.geometric(0.1, T), 30), np.arange(T) // 15
    scores = rng.gumbel(size=(T, E)) + np.arange(E) / 4 + (ids[:, None] % E == np.arange(E))
    indices = np.argsort(-scores, axis=1)[:, :K]
    fields: dict[str, Any] = {"document_ids": documents, "domains": list("abc"), "num_experts": E}
    real = metrics.context_independence(trace_of(indices, token_ids=ids, domain_ids=documents % 3, **fields)).iloc[0]
    token_null, domain_null = [], []
    for _ in range(60):
        shuffled = trace_of(indices, token_ids=rng.permutation(ids), domain_ids=documents % 3, **fields)
        token_null.append(metrics.context_independence(shuffled)["token_share"][0])
        labels = documents % 3
        for token_id in np.unique(ids):
            labels[ids == token_id] = rng.permutation(labels[ids == token_id])
        relabelled = trace_of(indices, token_ids=ids, domain_ids=labels, **fields)
        domain_null.append(metrics.context_independence(relabelled)["domain_beyond_token"][0])
    assert real["token_share"] > 1.5 * real["token_chance"]
    for name, null in (("token_chance", token_null), ("domain_beyond_chance", domain_null)):
        assert real[name] == pytest.approx(np.mean(null), abs=4 * np.std(null) / np.sqrt(60)), name


@settings(max_examples=60, deadline=None)
@given(population=st.integers(1, 3000), chose=st.floats(0, 1), drawn=st.floats(0, 1))
def test_expectations_agree_with_the_hypergeometric_distribution_of_scipy(
    population: int, chose: float, drawn: float
) -> None:
    s, d = round(chose * population), round(drawn * population)
    h = np.arange(1, population + 1)
    expected = float((hypergeom.pmf(h, population, s, d) * h * np.log(h)).sum())
    got = expected_xlogx(np.array([population]), np.array([s]), np.array([d]))[0]
    assert got == pytest.approx(expected, abs=3e-4, rel=1e-9)
