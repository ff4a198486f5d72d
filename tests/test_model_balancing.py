"""Balancing counts what a router wanted: what capacity and dropout take away changes neither loss nor bias."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from routers_support import VARIANTS, lone_router, route
from torch import Tensor

from moe_core.config import ModelConfig
from moe_core.config.router import ROUTER_FACTS, Balancing, RouterConfig
from moe_core.model.losses import StepLoad, load_balancing_loss, routing_losses, tokens_per_expert
from moe_core.model.routers import ROUTERS, Router, RouterContext, RouterOutput, RouterShape, build_router

NO_DROPS: dict[str, Any] = {}
DROPS: list[dict[str, Any]] = [
    {"capacity_factor": 1.25},
    {"capacity_factor": 0.1},
    {"expert_output_dropout": 0.5},
    {"expert_dropout": 0.4},
    {"capacity_factor": 0.75, "expert_output_dropout": 0.3, "expert_dropout": 0.2},
]


class Learned:
    """What one training step of a lone router tells and changes."""

    def __init__(
        self, variant: str, drops: dict[str, Any], *, logits_TE: Tensor, top_k: int, balancing: Balancing | None
    ) -> None:
        num_experts = logits_TE.shape[1]
        changes: dict[str, Any] = {"router_z_loss_coef": 0.0, "load_balancing_loss_coef": 1.0, **drops}
        capacity = changes.pop("capacity_factor", None)
        if balancing is not None:
            changes["balancing"] = balancing
        router = lone_router(variant, num_experts, top_k, **changes).train()
        router.capacity_factor = capacity
        states = logits_TE.clone().requires_grad_()
        torch.manual_seed(7)  # a noisy router draws its noise first
        self.routed = route(router, states)
        losses = routing_losses([self.routed], router.config, StepLoad())
        self.loss, self.minimised = losses.load_balancing.item(), losses.total.item()
        self.gradient = torch.autograd.grad(losses.total, states)[0] if losses.total.requires_grad else None
        router.after_step(self.routed.detach())
        self.learned = {name: value.clone() for name, value in router.named_buffers()}
        self.used = int((self.routed.router_indices >= 0).sum())


def possible_balancings(variant: str) -> list[Balancing | None]:
    """None = the usual one; what the configuration allows beside it."""
    facts = ROUTER_FACTS[RouterConfig.model_validate(VARIANTS[variant]).kind]
    losses: list[Balancing | None] = ["layer", "global_batch", "cv_squared"] if facts.load_is_learned else []
    return [None, *losses, *(["bias"] if facts.takes_bias else [])]  # type: ignore[list-item]


def possible_drops(variant: str) -> list[dict[str, Any]]:
    kind = RouterConfig.model_validate(VARIANTS[variant]).kind
    return [drops for drops in DROPS if not (ROUTER_FACTS[kind].cannot_choose and "expert_dropout" in drops)]


@pytest.mark.parametrize(
    ("variant", "balancing", "drops"),
    [
        (variant, balancing, drops)
        for variant in VARIANTS
        for balancing in possible_balancings(variant)
        for drops in possible_drops(variant)
    ],
    ids=str,
)
def test_what_is_taken_away_changes_no_balancing(
    variant: str, balancing: Balancing | None, drops: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    logits_TE = torch.randn(64, 8)
    logits_TE[:, 0] += 1.0
    given = {"logits_TE": logits_TE, "top_k": 2, "balancing": balancing}
    without, with_drops = (Learned(variant, one, **given) for one in (NO_DROPS, drops))
    assert with_drops.used < without.used or set(drops) <= {"capacity_factor", "expert_dropout"}
    assert (with_drops.loss, with_drops.minimised) == (without.loss, without.minimised)
    if without.gradient is not None:
        assert with_drops.gradient is not None
        assert torch.equal(with_drops.gradient, without.gradient)
    assert with_drops.learned.keys() == without.learned.keys()
    for name, value in without.learned.items():
        assert torch.equal(with_drops.learned[name], value), name
    assert torch.equal(with_drops.routed.wanted_indices, without.routed.router_indices)
    assert torch.equal(with_drops.routed.wanted_scores, without.routed.router_scores)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["softmax", "softmax_undivided", "sigmoid", "top_p", "noisy", "document_pool"]),
    st.floats(0.01, 4.0),
    st.floats(0.0, 0.9),
    st.integers(0, 99),
)
def test_any_capacity_and_any_dropout_leave_the_balancing_alone(
    variant: str, capacity: float, masked: float, seed: int
) -> None:
    torch.manual_seed(seed)
    given: dict[str, Any] = {"logits_TE": torch.randn(24, 5), "top_k": 2, "balancing": None}
    drops = {"capacity_factor": capacity, "expert_output_dropout": masked}
    without, with_drops = Learned(variant, NO_DROPS, **given), Learned(variant, drops, **given)
    assert (with_drops.loss, with_drops.minimised) == (without.loss, without.minimised)
    for name, value in without.learned.items():
        assert torch.equal(with_drops.learned[name], value), name


def overloaded(capacity_factor: float | None, **config: Any) -> tuple[Router, RouterOutput, Tensor]:
    """A router of 8 experts, top-2, 4,096 tokens, one expert's logit higher by 1."""
    router = ROUTERS["softmax"](RouterShape(8, 8, 2, capacity_factor), RouterConfig(**config)).train()
    torch.nn.init.eye_(router.weight)
    torch.manual_seed(0)
    states = torch.randn(4096, 8)
    states[:, 0] += 1.0
    states.requires_grad_()
    return router, router(states), states


def test_the_pull_on_an_overloaded_expert_is_as_strong_with_a_capacity_as_without() -> None:
    """Counted after the drops the loss was 1.06 instead of 1.19 and its gradient a third."""
    found = []
    for capacity in (None, 1.25):
        _, routed, states = overloaded(capacity)
        loss = load_balancing_loss(routed.router_logits, routed.wanted_indices, 8)
        found.append((loss.item(), torch.autograd.grad(loss, states)[0][:, 0].sum().item()))
        dropped = (routed.router_indices < 0).float().mean().item()
        assert (dropped > 0.1) == (capacity is not None), "the dropped fraction stays reported"
    assert found[0] == found[1]
    assert found[0] == pytest.approx((1.189, 0.239), abs=5e-4)


def test_the_bias_of_an_overloaded_expert_never_rises() -> None:
    """What capacity leaves is even, so that its sign was a matter of chance."""
    for capacity in (None, 1.0, 0.5):
        router, routed, _ = overloaded(capacity, balancing="bias", expert_output_dropout=0.5, bias_update_speed=0.01)
        router.after_step(routed.detach())
        bias = dict(router.named_buffers())["expert_bias"]
        torch.testing.assert_close(bias, torch.tensor([-0.01] + [0.01] * 7))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.data())
def test_the_loss_is_at_most_the_experts_over_the_slots(num_experts: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, num_experts))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    logits_TE = torch.randn(9, num_experts) * data.draw(st.sampled_from([0.1, 1.0, 30.0]))
    loss = load_balancing_loss(logits_TE, logits_TE.topk(top_k).indices, num_experts).item()
    assert loss <= num_experts / top_k * (1 + 1e-5)
    collapsed = torch.full((9, num_experts), -math.inf)
    collapsed[:, :top_k] = 0.0
    worst = load_balancing_loss(collapsed, collapsed.topk(top_k).indices, num_experts).item()
    assert worst == pytest.approx(num_experts / top_k)


def test_the_logged_loss_of_a_model_with_a_capacity_is_that_without() -> None:
    """Of the first layer, whose tokens are the same."""
    shape = {"vocab_size": 300, "dim": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8}
    loads = []
    for capacity in (None, 0.3):
        config = ModelConfig.model_validate({**shape, "num_experts": 6, "top_k": 2, "capacity_factor": capacity})
        torch.manual_seed(0)
        router = build_router(config).train()
        torch.nn.init.normal_(router.weight, generator=torch.Generator().manual_seed(1))
        states = torch.randn(50, 16, generator=torch.Generator().manual_seed(2))
        routed = router(states, RouterContext(torch.zeros(1, 50, dtype=torch.int64), None))
        loads.append(tokens_per_expert(routed.wanted_indices, 6))
        assert (int((routed.router_indices >= 0).sum()) < 100) == (capacity is not None)
    assert torch.equal(*loads)


@pytest.mark.parametrize("balancing", ["layer", "global_batch", "cv_squared", "bias"])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_experts_that_are_gone_balance_as_if_they_had_never_been(kind: str, balancing: Balancing) -> None:
    config = RouterConfig.model_validate(
        {"kind": kind, "balancing": balancing, "load_balancing_loss_coef": 1.0, "router_z_loss_coef": 0.0}
    )
    kept = torch.tensor([0, 2, 5, 7])
    torch.manual_seed(3)
    x_TD, weight_ED = torch.randn(50, 4), torch.randn(8, 4)
    pruned = ROUTERS[kind](RouterShape(4, 8, 2, loses_experts=True), config).train()
    small = ROUTERS[kind](RouterShape(4, 4, 2), config).train()
    assert pruned.weight is not None
    assert small.weight is not None
    assert pruned.removed is not None
    with torch.no_grad():
        pruned.weight.copy_(weight_ED)
        small.weight.copy_(weight_ED[kept])
        pruned.removed.fill_(True)[kept] = False
    told = []
    for router in (pruned, small):
        # Two micro-batches of one step, so that a load over both is different from one over each.
        load, losses = StepLoad(), []
        for part_TD in (x_TD[:20], x_TD[20:]):
            losses.append(routing_losses([router(part_TD)], config, load))
        total = torch.stack([one.total for one in losses]).sum()
        gradient = torch.autograd.grad(total, router.weight)[0] if total.requires_grad else torch.zeros(8, 4)
        told.append((torch.stack([one.load_balancing for one in losses]), total, gradient))
    (balance, total, gradient_ED), (expected, expected_total, expected_gradient_ED) = told
    torch.testing.assert_close(balance, expected)
    torch.testing.assert_close(total, expected_total)
    torch.testing.assert_close(gradient_ED[kept], expected_gradient_ED[: len(kept)])
