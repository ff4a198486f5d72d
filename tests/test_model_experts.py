"""The dispatch must equal the plainest possible mixture of experts: two nested Python loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_core.config import ModelConfig
from moe_core.config.tree import ActivationName
from moe_core.model.activation import ACTIVATIONS
from moe_core.model.experts import FEW_ROWS, Experts, way
from moe_core.model.experts.grouped import grouped_product
from moe_core.model.experts.one_token import one_token
from moe_core.model.experts.slices import COLUMNS_BELOW, PIECE_ROWS, ROWS_BELOW, sorted_slices
from moe_core.model.feed_forward import MoE

DIM, HIDDEN = 8, 8  # grouped_mm wants multiples of 16 bytes, in bfloat16, too


def naive_experts(
    x_TD: Tensor, scores_TK: Tensor, indices_TK: Tensor, gate: Tensor, up: Tensor, down: Tensor, name: str = "silu"
) -> Tensor:
    """For every token, for every slot in use: one expert, on one vector."""
    outputs = []
    for x, scores, indices in zip(x_TD, scores_TK, indices_TK.tolist(), strict=True):
        out = 0 * x
        for score, expert in zip(scores, indices, strict=True):
            if expert >= 0:
                gated = gate[expert] @ x
                share = torch.sigmoid(gated) if name == "silu" else (1 + torch.erf(gated / math.sqrt(2))) / 2
                out = out + score * (down[expert] @ (gated * share * (up[expert] @ x)))
        outputs.append(out)
    return torch.stack(outputs)


def random_experts(
    num_experts: int, dtype: torch.dtype = torch.float32, activation: ActivationName = "silu"
) -> Experts:
    experts = Experts(DIM, HIDDEN, num_experts, activation=activation).to(dtype)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return experts


def check_against_naive(
    experts: Experts, x_TD: Tensor, scores_TK: Tensor, indices_TK: Tensor, name: ActivationName = "silu"
) -> None:
    """Every way that can compute this must: outputs, with gradients kept and without, and all gradients."""
    inputs = [x_TD.requires_grad_(), scores_TK.requires_grad_(), *experts.parameters()]
    weights = (experts.gate_proj, experts.up_proj, experts.down_proj)
    slow = naive_experts(x_TD, scores_TK, indices_TK, *weights, name)
    seed = torch.randn_like(slow)
    slow_gradients = torch.autograd.grad(slow, inputs, seed, materialize_grads=True)
    for compute in (sorted_slices, grouped_product, experts):
        given = (x_TD, scores_TK, indices_TK, *(() if compute is experts else (*weights, ACTIVATIONS[name])))
        fast = compute(*given)
        torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-4)
        fast_gradients = torch.autograd.grad(fast, inputs, seed)
        for fast_gradient, slow_gradient in zip(fast_gradients, slow_gradients, strict=True):
            torch.testing.assert_close(fast_gradient, slow_gradient, atol=1e-5, rtol=1e-4)
        with torch.no_grad():
            torch.testing.assert_close(compute(*given), slow, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        each = [
            one_token(x_TD[t : t + 1], scores_TK[t : t + 1], indices_TK[t : t + 1], *weights, ACTIVATIONS[name])
            for t in range(len(x_TD))
        ]
    torch.testing.assert_close(torch.cat(each), slow, atol=1e-5, rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_output_and_gradients_equal_the_naive_loops(data: st.DataObject) -> None:
    num_experts = data.draw(st.integers(1, 6), label="E")
    top_k = data.draw(st.integers(1, num_experts), label="K")
    tokens = data.draw(st.integers(1, 9), label="T")
    torch.manual_seed(data.draw(st.integers(0, 99), label="seed"))
    indices_TK = torch.rand(tokens, num_experts).argsort(dim=1)[:, :top_k]
    name = data.draw(st.sampled_from(["silu", "gelu"]), label="activation")
    unused_TK = torch.rand(tokens, top_k) < data.draw(st.sampled_from([0.0, 0.5, 1.0]), label="unused")
    scores_TK = torch.rand(tokens, top_k).masked_fill(unused_TK, 0.0)
    experts = random_experts(num_experts, activation=name)
    check_against_naive(experts, torch.randn(tokens, DIM), scores_TK, indices_TK.masked_fill(unused_TK, -1), name)


def autograd_over_grouped_products(
    x_TD: Tensor, scores_TK: Tensor, indices_TK: Tensor, gate: Tensor, up: Tensor, down: Tensor
) -> Tensor:
    """The same calls of grouped_mm, differentiated by torch; rows of unused slots are masked."""
    E, (T, K) = len(gate), indices_TK.shape
    slots_N = torch.where(indices_TK < 0, E, indices_TK).flatten().argsort(stable=True)
    unused_N1 = (indices_TK.flatten()[slots_N] < 0)[:, None]
    ends_E = torch.tensor([int((indices_TK <= e).sum() - (indices_TK < 0).sum()) for e in range(E)], dtype=torch.int32)
    x_ND = x_TD[slots_N // K].masked_fill(unused_N1, 0.0)
    gate_NF, up_NF = (
        torch.nn.functional.grouped_mm(x_ND, weight.to(x_TD.dtype).mT, offs=ends_E) for weight in (gate, up)
    )
    hidden_NF = torch.nn.functional.silu(gate_NF) * up_NF
    y_ND = torch.nn.functional.grouped_mm(hidden_NF, down.to(x_TD.dtype).mT, offs=ends_E).masked_fill(unused_N1, 0.0)
    return (y_ND[slots_N.argsort()].view(T, K, -1) * scores_TK[:, :, None]).sum(dim=1)


ROUTED = {
    "two of four": torch.tensor([[0, 1], [3, 0], [1, 3], [0, 3], [3, 1]]),  # expert 2 is idle
    "one": torch.tensor([[0], [3], [3], [1]]),
    "one token": torch.tensor([[2, 0, 1]]),
    "some unused": torch.tensor([[-1, 1], [3, -1], [-1, -1], [0, 3]]),
    "none used": torch.full((3, 2), -1),
}


@pytest.mark.parametrize("indices_TK", ROUTED.values(), ids=ROUTED)
@pytest.mark.parametrize(
    ("x_dtype", "weight_dtype", "tolerance"),
    [
        (torch.float32, torch.float32, 1e-5),
        (torch.bfloat16, torch.bfloat16, 0.02),
        (torch.bfloat16, torch.float32, 0.02),  # autocast: gate and up in one product
    ],
)
def test_gradients_by_hand_equal_those_of_torch(
    indices_TK: Tensor, x_dtype: torch.dtype, weight_dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    weights = list(random_experts(4, weight_dtype).parameters())
    x_TD = torch.randn(len(indices_TK), DIM, dtype=x_dtype, requires_grad=True)
    scores_TK = torch.rand(indices_TK.shape).masked_fill(indices_TK < 0, 0.0).to(x_dtype).requires_grad_()
    d_out_TD = torch.randn_like(x_TD)
    found, expected = (
        [out, *torch.autograd.grad(out, [x_TD, scores_TK, *weights], d_out_TD)]
        for out in (
            compute(x_TD, scores_TK, indices_TK, *weights)
            for compute in (grouped_product, autograd_over_grouped_products)
        )
    )
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).float().norm() <= tolerance * other.float().norm()


def test_the_backward_pass_keeps_the_input_and_what_the_activation_takes() -> None:
    T, K, kept = 64, 2, []
    experts = random_experts(4)
    x_TD, indices_TK = torch.randn(T, DIM, requires_grad=True), torch.arange(T * K).view(T, K) % 4
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        experts(x_TD, torch.rand(T, K), indices_TK)
    buffers = {one.data_ptr(): one.nbytes for one in kept if one.is_floating_point()}
    for parameter in experts.parameters():
        del buffers[parameter.data_ptr()]
    assert sum(buffers.values()) == 4 * (T * DIM + T * K * 2 * HIDDEN + T * K)


@torch.no_grad()
def test_a_token_that_overflows_stays_alone_when_slots_are_unused() -> None:
    torch.manual_seed(0)
    x_TD = torch.randn(3, DIM)
    x_TD[0] = torch.inf
    indices_TK, scores_TK = torch.tensor([[0, 1], [1, -1], [-1, -1]]), torch.tensor([[0.5, 0.5], [1.0, 0.0], [0, 0]])
    out_TD = grouped_product(x_TD, scores_TK, indices_TK, *random_experts(2).parameters())
    assert out_TD[1].isfinite().all()
    assert out_TD[2].abs().sum() == 0


def test_experts_with_many_tokens_are_computed_piece_by_piece() -> None:
    """One whole piece, row by row, and the rest, column by column, for one expert; few tokens for the other."""
    torch.manual_seed(0)
    tokens = PIECE_ROWS + COLUMNS_BELOW // 2
    indices_TK = torch.full((tokens, 2), -1)
    indices_TK[:, 0], indices_TK[: ROWS_BELOW - 1, 1] = 1, 0
    check_against_naive(random_experts(3), torch.randn(tokens, DIM) / 8, torch.rand(tokens, 2), indices_TK)


def test_the_way_is_chosen_by_tokens_gradients_and_what_grouped_mm_can_do() -> None:
    weights, slots = torch.empty(2, HIDDEN, DIM), 2 * FEW_ROWS

    def chosen(tokens: int, rows: int, dim: int = DIM, dtype: torch.dtype = torch.float32) -> object:
        return way(torch.empty(tokens, dim, dtype=dtype), torch.empty(rows, 1), weights[:, :, :dim])

    assert chosen(1, 2) is grouped_product
    assert chosen(slots - 1, slots - 1) is grouped_product
    assert chosen(slots, slots) is sorted_slices
    assert chosen(slots, slots, dtype=torch.bfloat16) is grouped_product
    assert chosen(2, 4, dim=7) is sorted_slices
    assert chosen(2, 4, dtype=torch.float64) is sorted_slices
    with torch.no_grad():
        assert chosen(1, 2) is one_token
        assert chosen(2, 4) is sorted_slices


def test_two_passes_give_the_same_bits() -> None:
    torch.manual_seed(0)
    experts, x_TD = random_experts(4), torch.randn(300, DIM)
    scores_TK, indices_TK = torch.rand(300, 2), torch.rand(300, 4).argsort(dim=1)[:, :2]
    for compute in (sorted_slices, grouped_product):
        passes = []
        for _ in range(2):
            out = compute(x_TD, scores_TK, indices_TK, experts.gate_proj, experts.up_proj, experts.down_proj)
            passes.append((out, *torch.autograd.grad(out.square().sum(), list(experts.parameters()))))
        assert all(torch.equal(one, other) for one, other in zip(*passes, strict=True))


def test_gradients_are_exact_in_double_precision() -> None:
    torch.manual_seed(0)
    experts = random_experts(3, torch.float64)
    x_TD = torch.randn(4, DIM, dtype=torch.float64, requires_grad=True)
    scores_TK = torch.rand(4, 2, dtype=torch.float64, requires_grad=True)
    indices_TK = torch.tensor([[0, 2], [2, 0], [-1, 2], [0, -1]])
    weights = tuple(experts.parameters())
    torch.autograd.gradcheck(lambda x, scores, *_: experts(x, scores, indices_TK), (x_TD, scores_TK, *weights))


def test_experts_without_tokens_get_zero_gradient() -> None:
    torch.manual_seed(0)
    experts = random_experts(4)
    experts(torch.randn(3, DIM), torch.ones(3, 1), torch.tensor([[2], [2], [2]])).sum().backward()
    for parameter in experts.parameters():
        assert parameter.grad is not None
        assert parameter.grad[2].abs().sum() > 0
        assert parameter.grad[[0, 1, 3]].abs().sum() == 0


def test_a_retained_graph_can_be_walked_twice() -> None:
    torch.manual_seed(0)
    experts = random_experts(3)
    out = experts(torch.randn(5, DIM), torch.rand(5, 1), torch.tensor([[0], [1], [2], [1], [0]]))
    first = torch.autograd.grad(out.sum(), experts.gate_proj, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(out.sum(), experts.gate_proj)[0], first, atol=0, rtol=0)


def test_autocast_computes_in_bfloat16_and_keeps_float32_gradients() -> None:
    torch.manual_seed(0)
    experts = random_experts(3)
    x_TD, scores_TK = torch.randn(8, DIM), torch.rand(8, 2)
    indices_TK = torch.rand(8, 3).argsort(dim=1)[:, :2]
    exact = experts(x_TD, scores_TK, indices_TK)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = experts(x_TD, scores_TK, indices_TK)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, atol=0.1, rtol=0.1)
    rounded.float().sum().backward()
    assert experts.gate_proj.grad is not None
    assert experts.gate_proj.grad.dtype == torch.float32


@pytest.mark.parametrize("gated", [False, True])
def test_the_shared_expert_is_added_for_every_token(gated: bool) -> None:
    config = ModelConfig(
        dim=8, num_experts=3, top_k=2, expert_hidden_dim=4, shared_expert_hidden_dim=5, shared_expert_gate=gated
    )
    torch.manual_seed(0)
    moe = MoE(config)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x_TD = torch.randn(7, 8)
    out_TD, routed = moe(x_TD)
    experts = moe.experts
    naive_TD = naive_experts(
        x_TD, routed.router_scores, routed.router_indices, experts.gate_proj, experts.up_proj, experts.down_proj
    )
    shared = moe.shared_expert
    assert shared is not None
    gated_TF = x_TD @ shared.gate_proj.weight.T
    shared_TD = (gated_TF * torch.sigmoid(gated_TF) * (x_TD @ shared.up_proj.weight.T)) @ shared.down_proj.weight.T
    if gated:
        assert moe.shared_expert_gate is not None
        shared_TD = shared_TD * torch.sigmoid(x_TD @ moe.shared_expert_gate.weight.T)
    expected_TD = naive_TD + shared_TD
    torch.testing.assert_close(out_TD, expected_TD, atol=1e-5, rtol=1e-4)
    seed = torch.randn_like(out_TD)
    fast = torch.autograd.grad(out_TD, list(moe.parameters()), seed, retain_graph=True)
    slow = torch.autograd.grad(expected_TD, list(moe.parameters()), seed)
    for fast_gradient, slow_gradient in zip(fast, slow, strict=True):
        torch.testing.assert_close(fast_gradient, slow_gradient, atol=1e-5, rtol=1e-4)
