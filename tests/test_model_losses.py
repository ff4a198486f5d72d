"""Losses against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.config.router import RouterConfig
from moe_core.model.losses import (
    StepLoad,
    entropy_loss,
    load_balancing_loss,
    router_z_loss,
    routing_losses,
    squared_variation,
    variation_loss,
)
from moe_core.model.routers import RouterOutput


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


# ---- other ways to balance ----


def routed_by(logits_TE: torch.Tensor, top_k: int = 1) -> RouterOutput:
    largest = logits_TE.softmax(dim=-1).topk(top_k)
    return RouterOutput(logits_TE, largest.values, largest.indices)


def test_squared_variation_is_variance_over_squared_mean() -> None:
    # Mean 2, variance (1 + 0 + 1) / 3.
    assert squared_variation(torch.tensor([1.0, 2.0, 3.0])).item() == pytest.approx(1 / 6)
    assert squared_variation(torch.full((5,), 0.7)).item() == pytest.approx(0)
    assert squared_variation(torch.zeros(5)).item() == 0


def test_hand_computed_importance_and_load() -> None:
    # Importance: expert 0 has .75 + .5, expert 1 has .25 (the slot that is unused adds nothing): mean .75, CV^2 = 4/9.
    routed = RouterOutput(torch.zeros(2, 2), torch.tensor([[0.75, 0.25], [0.5, 0.0]]), torch.tensor([[0, 1], [0, -1]]))
    assert variation_loss(routed).item() == pytest.approx(4 / 9)
    # Expected load 1.8 and 0.2: CV^2 = .64.
    noisy = routed.noting(load_probability=torch.tensor([[0.9, 0.1], [0.9, 0.1]]))
    assert variation_loss(noisy).item() == pytest.approx(4 / 9 + 0.64)


def test_importance_pulls_towards_the_neglected_expert() -> None:
    logits_TE = torch.tensor([[1.0, 0.0], [2.0, 0.0]], requires_grad=True)
    weights = logits_TE.softmax(dim=-1)
    (gradient,) = torch.autograd.grad(
        variation_loss(RouterOutput(logits_TE, weights, torch.tensor([[0, 1], [0, 1]]))), logits_TE
    )
    assert (gradient[:, 0] > 0).all()
    assert (gradient[:, 1] < 0).all()


def test_entropy_is_that_of_the_probabilities() -> None:
    logits_TE = torch.log(torch.tensor([[0.5, 0.5], [0.75, 0.25]]))
    expected = (math.log(2) - 0.75 * math.log(0.75) - 0.25 * math.log(0.25)) / 2
    assert entropy_loss(logits_TE).item() == pytest.approx(expected)
    assert entropy_loss(torch.tensor([[1e4, -1e4]])).item() == 0


def test_global_balance_lets_parts_of_a_batch_differ() -> None:
    """One part goes to expert 0 alone, the other to expert 1: each part is collapsed, the batch is even."""
    part = torch.tensor([[4.0, 0.0]]).repeat(8, 1)
    parts = [[routed_by(part)], [routed_by(part.flip(1))]]
    layer, whole = (RouterConfig(balancing=name, router_z_loss_coef=0.0) for name in ("layer", "global_batch"))
    alone = [routing_losses(one, layer, StepLoad()).load_balancing.item() for one in parts]
    assert alone == pytest.approx([2 * torch.sigmoid(torch.tensor(4.0)).item()] * 2)
    load = StepLoad()
    first, second = (routing_losses(one, whole, load) for one in parts)
    assert first.load_balancing.item() == pytest.approx(alone[0])  # of the step so far there is this part alone
    assert second.load_balancing.item() == pytest.approx(1.0)
    assert second.total.item() == pytest.approx(0.01)
    assert routing_losses(parts[1], whole, StepLoad()).load_balancing.item() == pytest.approx(alone[0])  # a new step


@pytest.mark.parametrize(
    ("config", "total"),
    [
        (RouterConfig(balancing="layer"), 0.01 * 1.5 + 0.001),
        (RouterConfig(balancing="global_batch"), 0.01 * 1.5 + 0.001),
        (RouterConfig(balancing="cv_squared"), 0.01 * 1.0 + 0.001),
        (RouterConfig(balancing="bias"), 0.001),
        (RouterConfig(balancing="none", router_z_loss_coef=0.0), 0.0),
        (RouterConfig(kind="top_p", balancing="none", entropy_loss_coef=0.1), 0.001 + 0.1 * 0.5623351),
    ],
    ids=lambda value: str(getattr(value, "balancing", "")),
)
def test_what_is_minimised_is_what_was_asked_for(config: RouterConfig, total: float) -> None:
    # p = (3/4, 1/4) twice, both tokens with expert 0: balance 1.5, CV^2 of (1.5, 0) = 1, logsumexp 1.
    logits_TE = (torch.log(torch.tensor([[0.75, 0.25]])) + 1.0).repeat(2, 1)
    losses = routing_losses([routed_by(logits_TE)] * 3, config)
    assert losses.total.item() == pytest.approx(total)
    assert losses.load_balancing.item() == pytest.approx(1.5)  # told whatever is minimised
    assert losses.router_z.item() == pytest.approx(1.0)
