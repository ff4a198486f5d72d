"""The router contract: (logits [T, E], scores [T, K], indices [T, K])."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_core.config.router import RouterConfig
from moe_core.model.routers import ROUTERS, Router, RouterOutput, RouterShape, SigmoidRouter, TopKRouter


def identity_router(num_experts: int, top_k: int, *, capacity_factor: float | None = None, **config: object) -> Router:
    """A router whose tokens are the logits."""
    settings = RouterConfig.model_validate(config)
    router = ROUTERS[settings.kind](RouterShape(num_experts, num_experts, top_k, capacity_factor), settings)
    assert router.weight is not None
    torch.nn.init.eye_(router.weight)
    return router


def route(
    logits_TE: Tensor, top_k: int, *, training: bool = False, capacity_factor: float | None = None, **config: object
) -> RouterOutput:
    router = identity_router(logits_TE.shape[1], top_k, capacity_factor=capacity_factor, **config)
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
    router = identity_router(4, 2).to(torch.bfloat16)
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


def biased(logits_TE: Tensor, top_k: int, bias: list[float], **options: bool) -> RouterOutput:
    """As `route`, through sigmoids and a selection bias."""
    router = identity_router(logits_TE.shape[1], top_k, kind="sigmoid", **options)
    router.load_state_dict(router.state_dict() | {"expert_bias": torch.tensor(bias)})
    out: RouterOutput = router.eval()(logits_TE)
    return out


def test_hand_computed_sigmoid_scores_and_a_bias_that_selects_but_does_not_weigh() -> None:
    # sigmoid(ln 1, ln 3, ln 4, ln 1/4) = 1/2, 3/4, 4/5, 1/5
    logits_TE = torch.log(torch.tensor([[1.0, 3.0, 4.0, 0.25]]))
    plain = biased(logits_TE, 2, [0.0] * 4)
    assert plain.router_indices.tolist() == [[2, 1]]
    torch.testing.assert_close(plain.router_scores, torch.tensor([[0.8 / 1.55, 0.75 / 1.55]]))
    # 1/5 + 0.7 = 0.9 is now the largest of all, yet it weighs 1/5 and comes second.
    lifted = biased(logits_TE, 2, [0.0, 0.0, 0.0, 0.7], normalize_scores=False)
    assert lifted.router_indices.tolist() == [[2, 3]]
    torch.testing.assert_close(lifted.router_scores, torch.tensor([[0.8, 0.2]]))
    torch.testing.assert_close(biased(logits_TE, 1, [0.0] * 4).router_scores, torch.tensor([[0.8]]))


def decided(indices: list[list[int]]) -> RouterOutput:
    """What a router of four experts would say that chose these."""
    chosen = torch.tensor(indices)
    return RouterOutput(torch.zeros(len(indices), 4), (chosen >= 0).float(), chosen)


def test_the_bias_moves_against_the_load_by_its_speed() -> None:
    router = SigmoidRouter(RouterShape(4, 4, 2), RouterConfig(kind="sigmoid"))
    # Tokens per expert 3, 1, 2, 0 with one slot unused more: the mean is 1.5.
    chosen = decided([[0, 1], [0, 2], [0, 2], [-1, -1]])
    router.after_step(chosen)
    router.after_step(chosen)
    assert router.expert_bias is not None
    torch.testing.assert_close(router.expert_bias, torch.tensor([-0.02, 0.02, -0.02, 0.02]))
    router.after_step(decided([[0, 1], [2, 3]]))  # even: nothing to mend
    torch.testing.assert_close(router.expert_bias, torch.tensor([-0.02, 0.02, -0.02, 0.02]))
    unmoved = SigmoidRouter(RouterShape(4, 4, 2), RouterConfig(kind="sigmoid", balancing="layer"))
    unmoved.after_step(chosen)
    assert unmoved.expert_bias is not None
    assert unmoved.expert_bias.tolist() == [0.0] * 4
    without = TopKRouter(RouterShape(4, 4, 2))
    without.after_step(chosen)  # without a bias: nothing happens
    assert set(without.state_dict()) == {"weight"}


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_the_bias_evens_out_a_load_that_no_gradient_touches(kind: str) -> None:
    """Tokens that all prefer experts 0 and 1 (MaxVio = 1 of at most 1): after a while each expert gets its share."""
    torch.manual_seed(0)
    router = identity_router(4, 2, kind=kind, balancing="bias", bias_update_speed=0.005).eval()
    tokens = torch.randn(512, 4) * 0.3 + torch.tensor([1.0, 1.0, -0.5, -1.0])
    counts = []
    for _ in range(200):
        routed = router(tokens)
        counts.append(routed.router_indices.flatten().bincount(minlength=4))
        router.after_step(routed)
    assert counts[0].max() > 1.9 * counts[0].float().mean()
    assert counts[-1].max() < 1.15 * counts[-1].float().mean()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), st.integers(2, 8), st.data())
def test_the_contract_holds_for_sigmoid_routers_too(tokens: int, num_experts: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, num_experts))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    scale = data.draw(st.sampled_from([1.0, 1e3]))  # at 1e3 sigmoids are 0 and 1: logits decide among equals
    logits_TE, bias_E = scale * torch.randn(tokens, num_experts), torch.randn(num_experts)
    routed = biased(logits_TE, top_k, bias_E.tolist())
    assert all(len(set(row)) == top_k for row in routed.router_indices.tolist())
    assert (routed.router_scores.diff(dim=1) <= 0).all()
    assert routed.router_scores.isfinite().all()
    if top_k > 1:
        torch.testing.assert_close(routed.router_scores.sum(dim=1), torch.ones(tokens))
    order = torch.randperm(num_experts)
    permuted = biased(logits_TE[:, order], top_k, bias_E[order].tolist())
    torch.testing.assert_close(order[permuted.router_indices], routed.router_indices)


def test_absent_and_forced_experts_of_a_sigmoid_router_whatever_their_bias() -> None:
    router = identity_router(3, 2, kind="sigmoid")
    router.load_state_dict(
        router.state_dict() | {"weight": torch.eye(3), "expert_bias": torch.tensor([5.0, 0.0, -5.0])}
    )
    logits_TE = torch.tensor([[float("-inf"), 1.0, 2.0]])
    scores, indices = router.choose(logits_TE, 2)
    assert indices.tolist() == [[2, 1]]
    assert scores.isfinite().all()
    _, indices = router.choose(torch.tensor([[0.0, 1.0, 1.0]]), 1, forced=[2])
    assert indices.tolist() == [[2]]
