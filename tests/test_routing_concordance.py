"""Keyword in context: where an expert was chosen, with the words around."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.errors import TraceError, UsageError
from moe_core.routing import RoutingTrace
from moe_core.routing.measures.concordance import Context, contexts

WORDS = dict(enumerate(["the", "cat", "sat", "on", "a", "mat", ".", "<b>"]))


def make_trace() -> RoutingTrace:
    """Two documents: "the cat sat on the mat" and "a cat ."; expert 1 takes every cat, and the mat more weakly."""
    return RoutingTrace.from_arrays(
        router_indices=[[0, 2], [2, 1], [0, 2], [0, 2], [0, 2], [0, 1], [0, -1], [1, 0], [0, 2]],
        router_scores=[[1, 0], [0.25, 0.75], [1, 0], [1, 0], [1, 0], [0.9, 0.125], [1, 0], [0.5, 0.5], [1, 0]],
        num_experts=4,
        token_ids=[0, 1, 2, 3, 0, 5, 4, 1, 99],
        document_ids=[8, 8, 8, 8, 8, 8, 3, 3, 3],
        domain_ids=[1, 1, 1, 1, 1, 1, 0, 0, 0],
        domains=["prose", "verse"],
        layers=[6],
        vocabulary=WORDS,
    )


def test_contexts_by_hand() -> None:
    assert contexts(make_trace(), 6, 1, window=2) == [
        Context(8, 1, "verse", ("the",), "cat", ("sat", "on"), 0.75),
        Context(3, 1, "prose", ("a",), "cat", ("#99",), 0.5),
        Context(8, 5, "verse", ("on", "the"), "mat", (), 0.125),
    ]
    assert contexts(make_trace(), 6, 3) == []
    assert contexts(make_trace(), 6, 1, window=0)[0].after == ()


def test_the_order_of_the_rows_is_of_no_matter_and_a_gap_ends_the_context() -> None:
    trace = make_trace()
    shuffled = np.random.default_rng(0).permutation(trace.num_tokens)
    other = RoutingTrace.from_arrays(
        router_indices=trace.router_indices[:, shuffled],
        router_scores=trace.router_scores[:, shuffled],
        num_experts=4,
        token_ids=trace.token_ids[shuffled],
        document_ids=trace.document_ids[shuffled],
        positions=trace.positions[shuffled],
        domain_ids=trace.domain_ids[shuffled],
        domains=trace.domains,
        layers=[6],
        vocabulary=WORDS,
    )
    assert contexts(other, 6, 1) == contexts(trace, 6, 1)
    holed = trace.select(np.arange(9) != 3)
    assert contexts(holed, 6, 1)[0].after == ("sat",)
    assert contexts(holed, 6, 1)[2].before == ("the",)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), limit=st.integers(1, 30), window=st.integers(0, 5))
def test_a_sample_is_of_the_expert_repeatable_and_reads_as_the_text(seed: int, limit: int, window: int) -> None:
    rng = np.random.default_rng(seed)
    documents = np.sort(rng.integers(0, 5, 60))
    ids = np.arange(60)  # each token its own word, so that places can be told
    trace = RoutingTrace.from_arrays(
        router_indices=np.argsort(rng.random((2, 60, 4)), axis=-1)[..., :2],
        router_scores=rng.random((2, 60, 2)),
        num_experts=4,
        token_ids=ids,
        document_ids=documents,
    )
    found = contexts(trace, 1, 2, limit=limit, window=window, seed=seed)
    chose = (trace.router_indices[1] == 2).any(axis=1)
    assert len(found) == min(limit, chose.sum())
    assert found == contexts(trace, 1, 2, limit=limit, window=window, seed=seed)
    assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)
    places = [int(c.token[1:]) for c in found]
    assert len(set(places)) == len(places)
    for place, context in zip(places, found, strict=True):
        own = np.flatnonzero(documents == documents[place])
        around = [own[(own < place) & (own >= place - window)], own[(own > place) & (own <= place + window)]]
        assert chose[place]
        assert (context.document_id, context.position) == (documents[place], place - own[0])
        assert [context.before, context.after] == [tuple(f"#{i}" for i in side) for side in around]


def test_every_token_of_the_expert_can_be_drawn() -> None:
    trace = RoutingTrace.from_arrays(
        router_indices=[[0]] * 12, router_scores=[[1.0]] * 12, num_experts=1, token_ids=range(12)
    )
    drawn = {context.token for seed in range(40) for context in contexts(trace, 0, 0, limit=2, seed=seed)}
    assert drawn == {f"#{i}" for i in range(12)}


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(TraceError, match="layer 0 is not in this trace"):
        contexts(make_trace(), 0, 1)
    with pytest.raises(TraceError, match="expert 4 is not in this trace; expected 0 to 3"):
        contexts(make_trace(), 6, 4)
    with pytest.raises(UsageError, match="limit is 0 and window 8; expected at least 1 and at least 0"):
        contexts(make_trace(), 6, 1, limit=0)
