"""What all routers have in common, kind by kind: contract, ties, extremes, causality, cache, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from routers_support import (
    CAUSAL,
    CHOOSING,
    EXPERTS,
    START,
    TOP_K,
    VARIANTS,
    cached,
    lone_router,
    model_with,
    route,
    tokens,
)

from moe_core.errors import UsageError
from moe_core.model import KVCache
from moe_core.model.losses import routing_losses
from moe_core.model.routers import ExpertThresholdRouter, HashRouter
from moe_core.model.routers.hashing import balanced_table


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_the_contract(variant: str) -> None:
    model = model_with(variant)
    for training in (False, True):
        routed_LT = model.train(training)(tokens(4, 24)).router_outputs
        for routed in routed_LT:
            logits, scores, indices = routed[:3]
            assert (logits.shape, scores.shape, indices.shape) == ((96, EXPERTS), (96, TOP_K), (96, TOP_K))
            assert (logits.dtype, scores.dtype, indices.dtype) == (torch.float32, torch.float32, torch.int64)
            assert logits.isfinite().all()
            assert ((scores > 0) == (indices >= 0)).all()
            assert (scores.diff(dim=1) <= 0).all()
            assert all(len(set(row)) == len(row) for row in ([i for i in row if i >= 0] for row in indices.tolist()))
            assert indices.max() < EXPERTS
    variable = variant in ("top_p", "expert_threshold", "expert_choice")
    assert any((routed.router_indices < 0).any() for routed in routed_LT) == variable


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_extreme_logits_stay_finite_with_their_losses_and_gradients(variant: str, training: bool) -> None:
    torch.manual_seed(0)
    router = lone_router(variant).train(training)
    logits = torch.tensor(
        [[1e4, -1e4, 3.0, 0.0, 1e4, 5.0], [-1e4] * 6, [1e4] * 6, [-1e4, -1e4, -1e4, 1e4, -1e4, -1e4]]
    ).requires_grad_()
    routed = route(router, logits)
    assert routed.router_logits.isfinite().all()
    assert routed.router_scores.isfinite().all()
    balancings = {router.config.balances_by, "none" if variant.startswith(("hash", "expert")) else "cv_squared"}
    for balancing in balancings:
        losses = routing_losses([routed], router.config.model_copy(update={"balancing": balancing}))
        assert torch.stack(losses).isfinite().all()
        total = losses.total + routed.router_scores.sum()
        if total.requires_grad:
            assert torch.autograd.grad(total, logits, retain_graph=True)[0].isfinite().all()


TIES = {
    "hash": [
        [3, 4, 5],
        [0, 1, 2],
        [3, 4, 5],
        [0, 1, 2],
    ],  # equally frequent tokens: 0 has 0 1 2
    "top_p": [[0, 1, 2]] * 4,  # of six equal experts three reach one half
    "expert_threshold": [[-1, -1, -1]] * 4,  # nobody is above 0
    "expert_choice": [[0, 1, 2], [0, 1, 2], [-1] * 3, [-1] * 3],  # each expert takes the first two tokens
}
TIES["hash_learned"] = TIES["hash"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_among_equals_the_first_is_taken(variant: str) -> None:
    router = lone_router(variant)
    expected = TIES.get(variant, [[0, 1, 2]] * 4)
    for _ in range(2):
        assert route(router, torch.zeros(4, EXPERTS)).router_indices.tolist() == expected


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_future_token_changes_the_past_of_expert_choice_alone(variant: str) -> None:
    model, before = model_with(variant), tokens()
    after = before.clone()
    after[:, 11:] = (after[:, 11:] + 7) % 299 + 1
    old, new = model(before), model(after)
    past = slice(0, 11)
    same = all(
        torch.equal(a.router_indices.view(3, 16, -1)[:, past], b.router_indices.view(3, 16, -1)[:, past])
        for a, b in zip(old.router_outputs, new.router_outputs, strict=True)
    )
    close = torch.allclose(old.logits[:, past], new.logits[:, past], atol=1e-4)
    assert (same, close) == ((False, False) if variant == "expert_choice" else (True, True))


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_the_other_sequences_of_a_batch_matter_to_expert_choice_alone(variant: str) -> None:
    model, together = model_with(variant), tokens()
    whole = model(together)
    alone = [model(row[None]) for row in together]
    same = all(
        torch.equal(whole.router_outputs[layer].router_indices[16 * row : 16 * row + 16], one.router_indices)
        for row, output in enumerate(alone)
        for layer, one in enumerate(output.router_outputs)
    )
    close = torch.allclose(whole.logits, torch.cat([output.logits for output in alone]), atol=1e-4)
    assert (same, close) == ((False, False) if variant == "expert_choice" else (True, True))


@pytest.mark.parametrize("variant", CAUSAL)
@torch.no_grad()
def test_cached_decoding_chooses_as_the_whole_sequence(variant: str) -> None:
    model, ids = model_with(variant), tokens()
    whole = model(ids)
    logits, scores, indices = cached(model, ids, [5, 1, 1, 8, 1])
    torch.testing.assert_close(logits, whole.logits, atol=1e-4, rtol=0)
    for layer, routed in enumerate(whole.router_outputs):
        assert torch.equal(indices[layer].flatten(0, 1), routed.router_indices)
        torch.testing.assert_close(scores[layer].flatten(0, 1), routed.router_scores, atol=1e-4, rtol=0)


def test_a_router_that_sees_the_future_takes_no_cache() -> None:
    model = model_with("expert_choice")
    with pytest.raises(UsageError, match=r"expert_choice sees the future.*cannot generate or decode") as caught:
        model(tokens(1), cache=KVCache(model.config, 1, 16))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "hash"])
def test_the_gradient_of_the_text_reaches_the_router(variant: str) -> None:
    model, ids = model_with(variant).train(), tokens()
    logits = model(ids).logits
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    for router in model.routers:
        for name, parameter in router.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_an_equal_hash_router_has_nothing_to_learn() -> None:
    assert [dict(router.named_parameters()) for router in model_with("hash").routers] == [{}] * 3


@pytest.mark.parametrize("variant", [*CHOOSING, "expert_choice"])
def test_weights_have_the_gradient_of_their_formula(variant: str) -> None:
    torch.manual_seed(1)
    router = lone_router(variant).double()
    logits = torch.randn(5, EXPERTS, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: router.choose(x, TOP_K)[0], (logits,))


# ---- one kind each ----


def test_hand_computed_top_p() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.5, 0.4], [0.02, 0.08, 0.9]]))
    divided = route(lone_router("top_p", 3, 2, top_p=0.6), logits)
    assert divided.router_indices.tolist() == [[1, 2], [2, -1]]
    torch.testing.assert_close(divided.router_scores, torch.tensor([[5 / 9, 4 / 9], [1.0, 0.0]]))
    plain = route(lone_router("top_p", 3, 2, top_p=0.95, normalize_scores=False), logits)
    assert plain.router_indices.tolist() == [[1, 2], [2, 1]]  # K = 2 at most, though they sum to .9 only
    torch.testing.assert_close(plain.router_scores, torch.tensor([[0.5, 0.4], [0.9, 0.08]]))


def test_thresholds_follow_the_quantile_of_each_expert() -> None:
    torch.manual_seed(0)
    router = lone_router("expert_threshold", 4, 4, mean_experts=1.0, threshold_decay=0.5)
    assert isinstance(router, ExpertThresholdRouter)
    logits = torch.randn(1000, 4) * torch.tensor([1.0, 2.0, 0.1, 1.0]) + torch.tensor([0.0, 3.0, -5.0, 0.5])
    router.after_step(route(router, logits))
    # The first step counts alone: exactly a quarter of its tokens is above each threshold.
    assert (logits > router.threshold).sum(dim=0).tolist() == [250] * 4
    first = router.threshold.clone()
    router.after_step(route(router, logits + 1.0))
    torch.testing.assert_close(router.threshold, first + 0.5)
    routed = route(router, torch.tensor([[9.0, -9.0, 0.0, -9.0], [-9.0, -9.0, -9.0, -9.0]]))
    assert routed.router_indices.tolist() == [[0, 2, -1, -1], [-1] * 4]
    torch.testing.assert_close(routed.router_scores[0, :2], torch.tensor([9.0, 0.0]).sigmoid())


def test_a_token_above_all_thresholds_keeps_its_k_largest() -> None:
    router = lone_router("expert_threshold", 4, 2)
    assert route(router, torch.tensor([[1.0, 3.0, 2.0, 4.0]])).router_indices.tolist() == [[3, 1]]


def test_experts_choose_as_many_tokens_as_they_have_room_for() -> None:
    router = lone_router("expert_choice", 4, 4, mean_experts=2.0)
    torch.manual_seed(0)
    routed = route(router, torch.randn(30, 4))
    assert routed.router_indices[routed.router_indices >= 0].bincount().tolist() == [15] * 4
    # p = 4/7, 2/7, 1/7 and so on round: with mean_experts = 1 each expert takes its own token.
    logits = torch.log(torch.tensor([[4.0, 2.0, 1.0], [1.0, 4.0, 2.0], [2.0, 1.0, 4.0]]))
    routed = route(lone_router("expert_choice", 3, 2, mean_experts=1.0), logits)
    assert routed.router_indices.tolist() == [[0, -1], [1, -1], [2, -1]]
    torch.testing.assert_close(routed.router_scores[:, 0], torch.full((3,), 4 / 7))


def test_frequent_tokens_are_dealt_out_first() -> None:
    # 90 -> expert 0; 60 -> 1; 50 -> 2; 40 -> expert 2 (51 so far, the least); 10 -> 1.
    table = balanced_table(torch.tensor([10, 40, 90, 50, 60]), 3, 1)
    assert table.tolist() == [[1], [2], [0], [2], [1]]


def test_a_hash_table_balances_the_training_text() -> None:
    counts = (10_000 / torch.arange(1, 301)).long()  # Zipf's law
    table = balanced_table(counts, 8, 2)
    load_E = torch.zeros(8).index_add_(0, table.flatten(), counts.float().repeat_interleave(2))
    assert load_E.max() / load_E.mean() < 1.2
    assert all(len(set(row)) == 2 for row in table.tolist())
    every_third = torch.zeros(8).index_add_(0, torch.arange(600) % 8, counts.float().repeat_interleave(2))
    assert load_E.max() < every_third.max()


def test_a_hash_router_goes_by_token_id_alone() -> None:
    router, learned = lone_router("hash"), lone_router("hash_learned")
    assert isinstance(router, HashRouter)
    ids, logits = torch.tensor([5, 9, 5]), torch.randn(3, EXPERTS)
    routed, weighed = route(router, logits, ids), route(learned, logits, ids)
    assert torch.equal(routed.router_indices, router.table[ids])
    torch.testing.assert_close(routed.router_scores, torch.full((3, TOP_K), 1 / TOP_K))
    torch.testing.assert_close(
        routed.router_logits.softmax(dim=-1).gather(1, routed.router_indices), routed.router_scores
    )
    assert torch.equal(weighed.router_indices.sort().values, router.table[ids].sort().values)
    expected = logits.gather(1, weighed.router_indices).softmax(dim=-1)
    torch.testing.assert_close(weighed.router_scores, expected)
    with pytest.raises(UsageError, match="hash router was called with no token ids"):
        router(logits)


def pooled(p: list[list[float]], ids: list[int], **config: object) -> list[list[int]]:
    """Sorted pools of a document_pool router with these probabilities."""
    router = lone_router("document_pool", len(p[0]), 1, **config)
    routed = route(router, torch.log(torch.tensor(p)), torch.tensor(ids))
    assert routed.eligible is not None
    return [row.nonzero().flatten().tolist() for row in routed.eligible]


def test_hand_computed_pools() -> None:
    p = [[0.6, 0.3, 0.1], [0.1, 0.2, 0.7], [0.1, 0.1, 0.8], [0.1, 0.1, 0.8], [0.1, 0.7, 0.2]]
    # Sums: .6 .3 .1 | .7 .5 .8 | .8 .6 1.6; then a new document: .1 .1 .8 | .2 .8 1.0.
    assert pooled(p, [9, 8, 7, START, 6], pool_size=1) == [[0], [2], [2], [2], [2]]
    assert pooled(p, [9, 8, 7, START, 6], pool_size=2) == [[0, 1], [0, 2], [0, 2], [0, 2], [1, 2]]
    # Without a known start the text is one document: .9 .7 2.4 | 1.0 1.4 2.6.
    assert pooled(p, [9, 8, 7, 6, 5], pool_size=2)[3] == [0, 2]


def test_a_packed_document_is_pooled_as_if_it_were_alone() -> None:
    torch.manual_seed(0)
    router, logits = lone_router("document_pool"), torch.randn(40, EXPERTS)
    ids = torch.arange(1, 41)
    ids[[13, 29]] = START
    packed = route(router, logits, ids)
    for part in (slice(0, 13), slice(13, 29), slice(29, 40)):
        alone = route(router, logits[part], ids[part])
        assert torch.equal(alone.router_indices, packed.router_indices[part])
        torch.testing.assert_close(alone.router_scores, packed.router_scores[part], atol=0, rtol=0)


def test_a_cache_cut_back_pools_as_before() -> None:
    """What the router remembers is kept for every token, so a decoder may take tokens back."""
    model, ids = model_with("document_pool"), tokens(1)
    cache = KVCache(model.config, 1, 16)
    with torch.no_grad():
        model(ids[:, :10], cache=cache)
        model(ids[:, :4].flip(1), cache=cache)
        cache.length = 10
        again = model(ids[:, 10:], cache=cache)
        whole = model(ids)
    torch.testing.assert_close(again.logits, whole.logits[:, 10:], atol=1e-4, rtol=0)


def test_noise_is_learned_and_only_there_while_training() -> None:
    torch.manual_seed(0)
    router = lone_router("noisy")
    logits = torch.zeros(4000, EXPERTS)
    assert (route(router, logits).router_logits == 0).all()
    routed = route(router.train(), logits)
    assert routed.router_logits.std().item() == pytest.approx(math.log(2) + 0.01, rel=0.03)  # softplus(0) = ln 2
    assert routed.load_probability is not None
    # Equal experts: each is among the 3 of 6 with probability one half, and so often it was.
    assert routed.load_probability.mean().item() == pytest.approx(0.5, abs=0.01)


def test_the_expected_load_is_the_load_over_many_draws() -> None:
    """Phi of eq. 9 against the frequency with which an expert is chosen when its noise alone is drawn again."""
    torch.manual_seed(0)
    router = lone_router("noisy", 4, 2).train()
    logits = torch.tensor([[0.5, 0.0, -0.3, 0.2]])
    routed = route(router, logits)
    noisy = routed.router_logits.expand(20_000, 4)
    deviation = torch.nn.functional.softplus(logits) + 0.01
    assert routed.load_probability is not None
    for expert in range(4):
        redrawn = noisy.clone()
        redrawn[:, expert] = logits[0, expert] + torch.randn(20_000) * deviation[0, expert]
        often = (redrawn.topk(2).indices == expert).any(dim=1).float().mean()
        torch.testing.assert_close(routed.load_probability[0, expert], often, atol=0.012, rtol=0)
