"""Losses against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.model.losses import load_balancing_loss, router_z_loss


def test_perfectly_even_routing_costs_one() -> None:
    indices_TK = torch.tensor([[0, 1], [2, 3], [1, 0], [3, 2]])
    assert load_balancing_loss(torch.zeros(4, 4), indices_TK, 4).item() == pytest.approx(1.0)


def test_collapsed_routing_costs_the_number_of_experts() -> None:
    logits_TE = torch.tensor([[50.0, 0.0, 0.0, 0.0]]).repeat(6, 1)
    assert load_balancing_loss(logits_TE, torch.zeros(6, 1, dtype=torch.int64), 4).item() == pytest.approx(4.0)


def test_hand_computed_balance_and_gradient() -> None:
    # P = (3/4, 1/4) for both tokens; f = (1/2, 1/2) -> 2 * (3/8 + 1/8) = 1; f = (1, 0) -> 2 * 3/4 = 1.5.
    logits_TE = torch.log(torch.tensor([[3.0, 1.0], [3.0, 1.0]])).requires_grad_()
    assert load_balancing_loss(logits_TE, torch.tensor([[0], [1]]), 2).item() == pytest.approx(1.0)
    loss = load_balancing_loss(logits_TE, torch.tensor([[0], [0]]), 2)
    assert loss.item() == pytest.approx(1.5)
    # d/dlogit_0 of 2 * mean(p_0) = 2 * p_0 * (1 - p_0) / 2 tokens = 3/16.
    (gradient,) = torch.autograd.grad(loss, logits_TE)
    torch.testing.assert_close(gradient, torch.tensor([[3 / 16, -3 / 16]]).expand(2, 2))


def test_unused_slots_do_not_count() -> None:
    logits_TE = torch.log(torch.tensor([[3.0, 1.0], [3.0, 1.0]]))
    assert load_balancing_loss(logits_TE, torch.tensor([[0, -1], [-1, -1]]), 2).item() == pytest.approx(1.5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(0, 99))
def test_balance_does_not_depend_on_the_experts_names(num_experts: int, seed: int) -> None:
    torch.manual_seed(seed)
    logits_TE = torch.randn(9, num_experts)
    indices_TK = logits_TE.topk(min(2, num_experts)).indices
    order = torch.randperm(num_experts)
    renamed = load_balancing_loss(logits_TE[:, order], order.argsort()[indices_TK], num_experts)
    torch.testing.assert_close(renamed, load_balancing_loss(logits_TE, indices_TK, num_experts))


def test_hand_computed_z_loss() -> None:
    # logsumexp(0, 0) = log 2 and logsumexp(log 3, log 5) = log 8.
    logits_TE = torch.tensor([[0.0, 0.0], [math.log(3), math.log(5)]])
    assert router_z_loss(logits_TE).item() == pytest.approx((math.log(2) ** 2 + math.log(8) ** 2) / 2)


@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_extreme_logits_give_finite_losses_and_gradients(extreme: float) -> None:
    logits_TE = torch.tensor([[extreme, 0.0, -extreme], [0.0, extreme, 1.0]]).requires_grad_()
    indices_TK = logits_TE.argmax(dim=1, keepdim=True)
    loss = load_balancing_loss(logits_TE, indices_TK, 3) + router_z_loss(logits_TE)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, logits_TE)[0].isfinite().all()


def test_sigmoid_balance_uses_shares_of_the_sum_of_sigmoids() -> None:
    # sigmoid(0) = 1/2 and sigmoid(ln 3) = 3/4: shares 2/5 and 3/5; both tokens go to expert 1: 2 * (1 * 3/5) = 6/5.
    logits = torch.tensor([[0.0, math.log(3.0)]]).expand(2, 2)
    indices = torch.tensor([[1], [1]])
    torch.testing.assert_close(load_balancing_loss(logits, indices, 2, "sigmoid"), torch.tensor(1.2))
    even = load_balancing_loss(torch.full((4, 4), -200.0), torch.arange(4)[:, None], 4, "sigmoid")
    torch.testing.assert_close(even, torch.tensor(1.0))
