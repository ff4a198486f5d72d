"""How far two routings agree: by hand, by law, and its interval against many draws."""

from __future__ import annotations

from dataclasses import replace
from math import isnan
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.errors import TraceError
from moe_core.routing import RoutingTrace
from moe_core.routing.measures.agreement import (
    agreement_verdict,
    fine_tuning_verdict,
    routing_agreement,
    shared_percent,
)
from moe_core.routing.measures.movers import routing_movers


def trace_of(indices: Any, *, num_experts: int, **fields: Any) -> RoutingTrace:
    """A trace whose slots are in the order of their weight."""
    chosen = np.asarray(indices)
    weights = np.where(chosen < 0, 0.0, np.arange(chosen.shape[-1], 0, -1.0))
    fields.setdefault("token_ids", np.arange(chosen.shape[-2]))
    return RoutingTrace.from_arrays(router_indices=chosen, router_scores=weights, num_experts=num_experts, **fields)


def random_trace(seed: int, *, L: int = 2, T: int = 60, K: int = 2, E: int = 5, drop: float = 0.1) -> RoutingTrace:
    """Routing is another for every seed, the text is the same."""
    rng = np.random.default_rng(seed)
    chosen = np.argsort(rng.gumbel(size=(L, T, E)), axis=-1)[..., :K]
    kept = np.where(rng.random((L, T, K)) < drop, -1, chosen)
    return trace_of(kept, num_experts=E, document_ids=np.arange(T) // 6)


# Layer 0: token by token {0,1} {2} {0,3} {1,2} against {1,0} {2,3} {1,2} {1,2}; layer 1 the same in both.
ONE = [[[0, 1], [2, -1], [0, 3], [1, 2]], [[0, 1], [0, 1], [2, 3], [2, 3]]]
OTHER = [[[1, 0], [2, 3], [1, 2], [1, 2]], [[0, 1], [0, 1], [2, 3], [2, 3]]]


def test_agreement_by_hand() -> None:
    documents = [0, 0, 1, 1]
    found = routing_agreement(
        trace_of(ONE, num_experts=4, document_ids=documents), trace_of(OTHER, num_experts=4, document_ids=documents)
    )
    assert (found.tokens, found.sources, found.choices) == (4, 2, 16)  # a token that used one and two slots counts two
    assert found.same_choices == (2 + 1 + 0 + 2) + 8
    assert found.sources_that_differ == 2
    assert found.all_choices.value == 13 / 16
    assert found.first_choice.value == 6 / 8  # tokens 0 and 2 of layer 0 have another first one
    # Tokens of each expert: 2, 2, 2, 1 and 1, 3, 3, 1 in layer 0, twice 2, 2, 2, 2 in layer 1.
    assert found.all_choices.chance == pytest.approx(((2 + 6 + 6 + 1) / 4 + 16 / 4) / 16)
    # First choices: 2, 1, 1, 0 and 0, 3, 1, 0 in layer 0, twice 2, 0, 2, 0 in layer 1.
    assert found.first_choice.chance == pytest.approx(((0 + 3 + 1) / 4 + 8 / 4) / 8)
    assert [(one.layer, one.all_choices.value, one.first_choice.value) for one in found.layers] == [
        (0, 5 / 8, 0.5),
        (1, 1.0, 1.0),
    ]
    assert found.all_choices.low <= found.all_choices.value <= found.all_choices.high


def test_a_routing_agrees_with_itself_and_says_how_sure_that_is() -> None:
    own = random_trace(0)
    found = routing_agreement(own, own)
    assert found.is_complete
    assert found.all_choices.value == found.first_choice.value == 1.0
    assert found.most_sources_that_differ == pytest.approx(1 - 0.05 ** (1 / 10))
    assert agreement_verdict(found).startswith("Identical: all ")
    assert "at most 26 % of such sources have a choice that differs" in agreement_verdict(found)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_names_of_experts_and_the_order_of_the_two_make_no_difference(seed: int) -> None:
    first, second = random_trace(seed), random_trace(seed + 1)
    found = routing_agreement(first, second)
    name = np.random.default_rng(seed).permutation(5)
    turned = [
        replace(one, router_indices=np.where(one.router_indices < 0, -1, name[one.router_indices]).astype(np.int16))
        for one in (first, second)
    ]
    assert routing_agreement(*turned) == found
    other_way = routing_agreement(second, first)
    assert other_way.all_choices == found.all_choices
    assert other_way.first_choice == found.first_choice
    assert 0 <= found.same_choices <= found.choices
    assert found.all_choices.value == pytest.approx(found.same_choices / found.choices)


def test_independent_routers_agree_as_often_as_chance_says_and_are_not_told_apart_from_it() -> None:
    first, second = (random_trace(seed, T=6000, E=8, drop=0.0) for seed in (1, 2))
    found = routing_agreement(first, second)
    assert found.all_choices.chance == pytest.approx(2 / 8, abs=0.002)
    assert found.first_choice.chance == pytest.approx(1 / 8, abs=0.002)
    assert found.all_choices.value == pytest.approx(found.all_choices.chance, abs=0.02)
    assert agreement_verdict(found).startswith("Not distinguishable from chance")


def with_changed(trace: RoutingTrace, share: float, seed: int) -> RoutingTrace:
    """With another first choice for so many tokens, more of them in some sources than in others."""
    rng = np.random.default_rng(seed)
    of_source = np.clip(rng.beta(2, 2 / share - 2, size=trace.source_ids.max() + 1), 0, 1)
    changed_LT = rng.random(trace.router_indices.shape[:2]) < of_source[trace.source_ids]
    indices = trace.router_indices.copy()
    free = np.argmin(np.stack([(indices == e).any(-1) for e in range(trace.num_experts)], -1), axis=-1)
    indices[..., 0] = np.where(changed_LT, free, indices[..., 0])
    return replace(trace, router_indices=indices)


def test_the_interval_covers_the_true_agreement() -> None:
    own = random_trace(0, T=180, drop=0.0)
    hits = 0
    for seed in range(60):
        whole = routing_agreement(own, with_changed(own, 0.2, seed)).all_choices
        hits += whole.low <= 1 - 0.2 / 2 <= whole.high  # one of two choices
    assert hits >= 52  # 57 of 60 are expected; 51 or fewer has probability 0.005


def test_one_source_and_no_choice_cannot_be_told() -> None:
    alone = routing_agreement(
        trace_of(ONE, num_experts=4, document_ids=[0] * 4), trace_of(OTHER, num_experts=4, document_ids=[0] * 4)
    )
    assert isnan(alone.all_choices.low)
    assert "from one source, how surely cannot be told" in agreement_verdict(alone)
    silent = trace_of([[[-1], [-1]]], num_experts=2)
    nothing = routing_agreement(silent, silent)
    assert isnan(nothing.all_choices.value)
    assert agreement_verdict(nothing).endswith("cannot be told.")


def test_what_follows_for_a_fine_tuned_model() -> None:
    own = random_trace(0, T=180, drop=0.0)
    much, unlike = with_changed(own, 0.5, seed=1), random_trace(9, T=180, drop=0.0)
    told = [fine_tuning_verdict(routing_agreement(own, b), routing_movers(own, b)) for b in (own, much, unlike)]
    assert told[0].startswith("Fine-tuning left the routing of this text as it was")
    assert told[1].startswith("After fine-tuning ")
    assert "and the experts divide the work otherwise: " in told[1]
    assert "hardly a model and its fine-tuned copy" in told[2]
    one_token = own.router_indices.copy()
    one_token[0, 0] = one_token[0, 0, ::-1] + 0  # the same set, in the other order
    one_token[1, 5, 0] = next(e for e in range(5) if e not in one_token[1, 5])
    rarely = replace(own, router_indices=one_token)
    assert "cannot be told from what it was" in fine_tuning_verdict(
        routing_agreement(own, rarely), routing_movers(own, rarely)
    )


def test_too_few_sources_do_not_make_two_models_strangers() -> None:
    """Of one source two of three choices are others, of the other none: an interval from 0 to 100 % says nothing."""
    own = random_trace(0, T=60, drop=0.0)
    own = replace(own, source_ids=np.repeat([0, 1], 30).astype(np.int32))
    indices = own.router_indices.copy()
    indices[:, :20] = (indices[:, :20] + 1) % own.num_experts
    other = replace(own, router_indices=indices)
    found = routing_agreement(own, other)
    assert found.all_choices.low <= found.all_choices.chance < 0.6 < found.all_choices.value
    told = fine_tuning_verdict(found, routing_movers(own, other))
    assert told.startswith("Not distinguishable from two models that have nothing in common but their load")
    assert told.endswith("or 2 sources are too few to tell.")


def test_what_is_not_all_is_never_called_100_percent() -> None:
    assert [shared_percent(share) for share in (0.31, 0.99, 0.991, 0.9994, 0.99951, 1.0)] == [
        "31 %", "99 %", "99.1 %", "99.9 %", "over 99.9 %", "100 %",
    ]  # fmt: skip


def test_other_tokens_and_other_shapes_are_refused() -> None:
    with pytest.raises(TraceError, match="different tokens"):
        routing_agreement(random_trace(0), replace(random_trace(1), token_ids=np.arange(60, dtype=np.int32) + 1))
    with pytest.raises(TraceError, match="5 and 6 experts"):
        routing_agreement(random_trace(0), random_trace(0, E=6))
