"""Margins where choices flip, and whether flips carry on: by hand, by law, and verdicts against planted truth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.routing import RoutingTrace
from moe_core.routing.measures.decisions import beside_logits, token_last_weight, token_lead
from moe_core.routing.measures.flip_accumulation import accumulation_verdict, flip_accumulation
from moe_core.routing.measures.flip_margins import NEAR_TIES, flip_margins, margins_verdict
from moe_core.routing.statistics.superiority import ranked_layer, superiority


def routed(logits: Any, K: int = 2, *, tokens_per_document: int = 10, keep: bool = True) -> RoutingTrace:
    """The top K of logits [L,T,E], their softmax as weights, divided by their sum."""
    logits = np.asarray(logits, dtype=np.float64)
    chosen = np.argsort(-logits, axis=-1, kind="stable")[..., :K]
    weights = np.exp(np.take_along_axis(logits, chosen, axis=-1))
    T = logits.shape[1]
    return RoutingTrace.from_arrays(
        router_indices=chosen,
        router_scores=weights / weights.sum(axis=-1, keepdims=True),
        router_logits=logits if keep else None,
        num_experts=logits.shape[2],
        token_ids=np.arange(T),
        document_ids=np.arange(T) // tokens_per_document,
    )


def disturbed(seed: int, noise: float, *, L: int = 3, T: int = 600, E: int = 8) -> tuple[RoutingTrace, RoutingTrace]:
    """A routing, and the same with noise on its logits, which is another in each layer."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(L, T, E))
    return routed(logits), routed(logits + noise * rng.normal(size=logits.shape))


def test_margins_by_hand() -> None:
    shares = np.array([[[0.5, 0.3, 0.2], [0.4, 0.35, 0.25], [0.6, 0.22, 0.18], [0.5, 0.26, 0.24]]])
    a = routed(np.log(shares), tokens_per_document=1)
    b = routed(np.log(shares[:, :, [0, 2, 1]])[:, [0, 0, 0, 3]], tokens_per_document=1)  # {0, 2} everywhere
    found = flip_margins(a, b)
    assert (found.of, found.experts.basis, found.experts.flips, found.experts.sources) == ("A", "boundary", 4, 4)
    c = replace(b, router_indices=np.where([[[True], [False], [True], [False]]], a.router_indices, b.router_indices))
    found = flip_margins(a, c)
    assert found.experts.flips == 2  # tokens 1 and 3, of margins 0.1 and 0.02; 0.1 and 0.04 stayed
    assert found.experts.at_flips.median == pytest.approx(0.06, abs=1e-3)
    assert found.experts.elsewhere.median == pytest.approx(0.07, abs=1e-3)
    # Of the four pairs 0.02 is smaller than both others, 0.1 than neither; one pair ties but for half precision.
    assert 0.5 <= found.experts.closer.value <= 0.75
    assert found.first.flips == 0
    assert token_lead(a, 0) == pytest.approx([0.2, 0.05, 0.38, 0.24], abs=1e-3)
    assert token_last_weight(a, 0) == pytest.approx([0.3 / 0.8, 0.35 / 0.75, 0.22 / 0.82, 0.26 / 0.76], abs=1e-3)


def test_pairs_are_ranked_by_hand_and_ties_count_half() -> None:
    own = ranked_layer(np.array([1.0, 2.0, 2.0, 5.0, np.nan]), np.array([True, False, True, False, True]))
    assert own.value == pytest.approx((2 + 1.5) / 4)  # 1 < both, 2 ties with 2 and is below 5
    assert own.marked == 2
    found = superiority([own], np.array([0, 0, 1, 1, 1]), 2)
    assert found.low <= found.value == own.value <= found.high
    none = ranked_layer(np.array([1.0, 2.0]), np.array([False, False]))
    assert np.isnan(superiority([none], np.array([0, 1]), 2).value)


def test_the_interval_of_pairs_covers_the_truth_where_tokens_of_a_source_are_alike() -> None:
    hits, draws, rng = 0, 200, np.random.default_rng(0)
    for _ in range(draws):
        block_T = np.repeat(np.arange(24), 20)
        source_T = rng.normal(size=24)[block_T]
        is_marked = rng.random(len(block_T)) < 0.2
        values = source_T + rng.normal(size=len(block_T)) - 1.0 * is_marked
        found = superiority([ranked_layer(values, is_marked)], block_T, 24)
        hits += found.low <= 0.6915 <= found.high  # P(N(-1, 2) < N(0, 2)) = Phi(1 / 2)
    assert hits / draws > 0.91  # 95 % less three standard errors


def test_rounding_flips_ties_and_another_router_does_not() -> None:
    ties = flip_margins(*disturbed(0, 0.03, T=2000))
    assert ties.experts.closer.low >= NEAR_TIES
    assert margins_verdict(ties).startswith("The flips are near ties: median margin 0.0")
    a, _ = disturbed(1, 0.0)
    rng = np.random.default_rng(2)
    elsewhere = np.where(rng.random((3, 600, 1)) < 0.2, rng.permuted(a.router_logits, axis=-1), a.router_logits)
    real = flip_margins(a, routed(elsewhere))
    assert margins_verdict(real).startswith("The flips cannot be told from choices that changed wherever they were")
    assert abs(real.experts.closer.value - 0.5) < 0.1


def test_what_is_not_known_is_not_told() -> None:
    a, b = disturbed(3, 0.05)
    assert margins_verdict(flip_margins(a, a)).startswith("No token goes to other experts")
    alone = replace(a, source_ids=np.zeros_like(a.source_ids)), replace(b, source_ids=np.zeros_like(b.source_ids))
    assert "cannot be told" in margins_verdict(flip_margins(*alone))
    assert "cannot be told" in accumulation_verdict(flip_accumulation(*alone))
    bare = [replace(one, router_logits=None) for one in (a, b)]
    scores = flip_margins(*bare)
    assert (scores.experts.basis, scores.first.basis) == ("last weight", "lead")
    assert "takes logits" in margins_verdict(scores)
    assert scores.first.closer.low > 0.5  # the lead of the first choice is known from the weights alone
    even = [replace(one, router_scores=np.full_like(one.router_scores, 0.5)) for one in bare]
    assert "neither routing says" in margins_verdict(flip_margins(*even))
    assert flip_margins(even[0], b).of == "B"
    biased = replace(a, router_indices=(a.router_indices + 1) % a.num_experts)
    assert beside_logits(biased, 0) > 0.5
    assert "something beside them chose too" in margins_verdict(flip_margins(biased, b))
    assert flip_accumulation(*(routed(one.router_logits[:1]) for one in (a, b))) is None


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_names_of_experts_make_no_difference(seed: int) -> None:
    a, b = disturbed(seed, 0.2, T=80)
    name = np.random.default_rng(seed).permutation(8)
    turned = [
        replace(
            one,
            router_indices=name[one.router_indices].astype(np.int16),
            router_logits=one.router_logits[:, :, np.argsort(name)],
        )
        for one in (a, b)
    ]
    before, after = flip_margins(a, b), flip_margins(*turned)
    assert after.experts.closer.value == pytest.approx(before.experts.closer.value)
    assert after.experts.at_flips.median == pytest.approx(before.experts.at_flips.median)
    one, other = flip_accumulation(a, b), flip_accumulation(*turned)
    assert one is not None
    assert other is not None
    assert (one.whole.rate, one.whole.chance) == pytest.approx((other.whole.rate, other.whole.chance))


def test_flips_that_carry_on_are_told_from_tokens_that_are_hard_in_all_layers() -> None:
    rng = np.random.default_rng(5)
    T = 4000
    # A token's logits are spread alike in all layers: tokens of little spread flip in all of them, and none causes any.
    spread = np.exp(rng.normal(size=(1, T, 1)))
    logits = spread * rng.normal(size=(3, T, 8))
    a = routed(logits, tokens_per_document=40)
    b = routed(logits + 0.1 * rng.normal(size=logits.shape), tokens_per_document=40)
    apart = flip_accumulation(a, b)
    assert apart is not None
    flipped = (np.sort(a.router_indices) != np.sort(b.router_indices)).any(axis=-1)
    assert apart.whole.rate > 1.3 * flipped.mean()  # more than flips on average, and yet no more than by chance
    assert apart.whole.low <= 0 <= apart.whole.high
    assert apart.whole.rate == pytest.approx(apart.whole.chance, abs=0.05)
    noise = 0.1 * rng.normal(size=logits.shape)
    for row in (1, 2):
        before = (np.argsort(-(logits + noise)[row - 1]) != np.argsort(-logits[row - 1]))[:, :2].any(axis=-1)
        noise[row] *= np.where(before, 6.0, 1.0)[:, None]
    carried = flip_accumulation(a, routed(logits + noise, tokens_per_document=40))
    assert carried is not None
    assert carried.whole.low > 0
    assert accumulation_verdict(carried).startswith("Flips accumulate: ")


def test_a_chance_of_two_layers_by_hand() -> None:
    # Six documents of four tokens; all margins are alike, so that one stratum is left.
    a = routed(np.log(np.tile([[0.5, 0.3, 0.2]], (2, 24, 1))), tokens_per_document=4)
    other = np.tile(np.array([0, 2], np.int16), (24, 1))
    lower, upper = np.arange(24) % 4 < 2, np.arange(24) % 4 < 1
    indices = a.router_indices.copy()
    indices[0, lower], indices[1, upper] = other[lower], other[upper]
    found = flip_accumulation(a, replace(a, router_indices=indices))
    assert found is not None
    whole = found.whole
    assert (whole.flips, whole.rate, whole.sources) == (12, 0.5, 6)
    assert whole.chance == pytest.approx(0.25)  # 12 x 6 / 24 of 12
    assert whole.p_value == pytest.approx(1 / 32)  # all six sources alike, of 2^5 patterns
