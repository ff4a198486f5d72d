"""The router contract: (logits [T, E], scores [T, K], indices [T, K])."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_core.model.router import RouterOutput, TopKRouter


def route(logits_TE: Tensor, top_k: int, *, training: bool = False, **options: float | bool | None) -> RouterOutput:
    """Give the router the identity as weight, so that the tokens themselves are the logits."""
    router = TopKRouter(logits_TE.shape[1], logits_TE.shape[1], top_k, **options)  # type: ignore[arg-type]
    torch.nn.init.eye_(router.weight)
    out: RouterOutput = router.train(training)(logits_TE)
    return out


def test_hand_computed_scores() -> None:
    # Probabilities 1/7, 4/7, 2/7.
    logits_TE = torch.log(torch.tensor([[1.0, 4.0, 2.0]]))
    normalized = route(logits_TE, 2)
    assert normalized.router_indices.tolist() == [[1, 2]]
    torch.testing.assert_close(normalized.router_scores, torch.tensor([[2 / 3, 1 / 3]]))
    torch.testing.assert_close(normalized.router_logits, logits_TE)
    torch.testing.assert_close(
        route(logits_TE, 2, normalize_scores=False).router_scores, torch.tensor([[4 / 7, 2 / 7]])
    )


def test_top_1_is_weighted_by_its_probability_so_that_the_router_learns() -> None:
    logits_TE = torch.log(torch.tensor([[1.0, 4.0, 2.0]])).requires_grad_()
    routed = route(logits_TE, 1)
    torch.testing.assert_close(routed.router_scores, torch.tensor([[4 / 7]]))
    assert torch.autograd.grad(routed.router_scores.sum(), logits_TE)[0].abs().max() > 0.1


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 8), st.data())
def test_contract_holds_for_any_shape(tokens: int, num_experts: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, num_experts))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    logits_TE = torch.randn(tokens, num_experts)
    routed = route(logits_TE, top_k)
    assert routed.router_logits.shape == (tokens, num_experts)
    assert routed.router_scores.shape == routed.router_indices.shape == (tokens, top_k)
    assert routed.router_indices.dtype == torch.int64
    assert all(len(set(row)) == top_k for row in routed.router_indices.tolist())
    assert (routed.router_scores.diff(dim=1) <= 0).all()
    if top_k > 1:
        torch.testing.assert_close(routed.router_scores.sum(dim=1), torch.ones(tokens))
    order = torch.randperm(num_experts)
    permuted = route(logits_TE[:, order], top_k)
    torch.testing.assert_close(order[permuted.router_indices], routed.router_indices)
    torch.testing.assert_close(permuted.router_scores, routed.router_scores)


def test_ties_go_to_the_smaller_index() -> None:
    assert route(torch.zeros(3, 40), 3).router_indices.tolist() == [[0, 1, 2]] * 3
    assert route(torch.tensor([[0.0, 1.0, 0.0, 1.0]]), 3).router_indices.tolist() == [[1, 3, 0]]


def test_extreme_logits_stay_finite_and_are_ordered_by_logit() -> None:
    # Beside 1e4 every other probability underflows to 0; the second choice must still be the second largest logit.
    logits_TE = torch.tensor([[-1e4, 3.0, 1e4, 5.0]]).requires_grad_()
    for normalize_scores in (True, False):
        routed = route(logits_TE, 2, normalize_scores=normalize_scores)
        assert routed.router_indices.tolist() == [[2, 3]]
        assert routed.router_scores.tolist() == [[1.0, 0.0]]
        assert torch.autograd.grad(routed.router_scores.sum(), logits_TE)[0].isfinite().all()


def test_bfloat16_tokens_are_scored_in_float32() -> None:
    router = TopKRouter(4, 4, 2).to(torch.bfloat16)
    torch.nn.init.eye_(router.weight)
    routed = router(torch.randn(3, 4, dtype=torch.bfloat16))
    assert routed.router_logits.dtype == routed.router_scores.dtype == torch.float32


def test_autocast_does_not_round_the_logits() -> None:
    torch.manual_seed(0)
    logits_TE = torch.randn(16, 8)
    with torch.autocast("cpu", torch.bfloat16):
        routed = route(logits_TE, 2)
    torch.testing.assert_close(routed.router_logits, logits_TE, atol=0, rtol=0)


def test_noise_only_while_training() -> None:
    logits_TE = torch.zeros(4000, 4)
    torch.manual_seed(0)
    noisy = route(logits_TE, 1, training=True, noise_std=0.5)
    assert noisy.router_logits.std().item() == pytest.approx(0.5, rel=0.05)
    torch.testing.assert_close(noisy.router_indices[:, 0], noisy.router_logits.argmax(dim=1))
    assert route(logits_TE, 1, noise_std=0.5).router_logits.abs().max() == 0
    torch.manual_seed(0)
    again = route(logits_TE, 1, training=True, noise_std=0.5)
    torch.testing.assert_close(again.router_logits, noisy.router_logits, atol=0, rtol=0)


def test_capacity_drops_later_tokens_and_only_while_training() -> None:
    # Four tokens want expert 0 first and expert 1 second; capacity = ceil(0.5 * 4 * 2 / 2) = 2 tokens per expert.
    logits_TE = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    routed = route(logits_TE, 2, training=True, capacity_factor=0.5)
    assert routed.router_indices.tolist() == [[0, 1], [0, 1], [-1, -1], [-1, -1]]
    assert (routed.router_scores[2:] == 0).all()
    torch.testing.assert_close(routed.router_scores[:2], route(logits_TE, 2).router_scores[:2])
    assert (route(logits_TE, 2, capacity_factor=0.5).router_indices >= 0).all()


def test_capacity_is_shared_by_first_and_second_choices() -> None:
    # Expert 0 is token 0's second choice and token 1's first; with room for one token, the earlier token has it.
    logits_TE = torch.tensor([[1.0, 2.0, 0.0], [2.0, 0.0, 1.0]])
    routed = route(logits_TE, 2, training=True, capacity_factor=0.5)
    assert routed.router_indices.tolist() == [[1, 0], [-1, 2]]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 5), st.floats(0.1, 3.0), st.integers(0, 99))
def test_no_expert_exceeds_its_capacity(tokens: int, num_experts: int, factor: float, seed: int) -> None:
    top_k = min(2, num_experts)
    torch.manual_seed(seed)
    routed = route(torch.randn(tokens, num_experts), top_k, training=True, capacity_factor=factor)
    used = routed.router_indices[routed.router_indices >= 0]
    capacity = -(-factor * tokens * top_k // num_experts)
    assert used.numel() > 0
    assert used.bincount().max() <= capacity
    assert torch.equal(routed.router_scores == 0, routed.router_indices < 0)
