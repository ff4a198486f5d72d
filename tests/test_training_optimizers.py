"""Muon against its definition, against torch's for single matrices, and the state that goes into a checkpoint."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from moe_core.config import ModelConfig, TrainingConfig
from moe_core.model.transformer import MoETransformer
from moe_core.training.optimizers import (
    NEWTON_SCHULZ_ITERATIONS,
    QUINTIC,
    Muon,
    build_optimizers,
    newton_schulz_products,
    optimizer_tensors,
    orthogonalise,
    restore_optimizers,
    set_learning_rates,
)

SMALL = ModelConfig(
    vocab_size=300, dim=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, num_experts=4,
    expert_hidden_dim=24, shared_expert_hidden_dim=16, shared_expert_gate=True, max_seq_len=64, first_dense_layers=1,
)  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(8, 40),
    st.integers(8, 40),
    st.floats(1e-4, 1e4),
    st.sampled_from([(3, 0.2), (5, 0.05)]),
)
def test_singular_values_move_near_one(
    seed: int, rows: int, columns: int, scale: float, reach: tuple[int, float]
) -> None:
    iterations, smallest = reach
    generator = torch.Generator().manual_seed(seed)
    matrix = scale * torch.randn(rows, columns, generator=generator)
    before, after = torch.linalg.svd(matrix, full_matrices=False), orthogonalise(matrix, iterations)
    values = torch.linalg.svdvals(after)
    # What starts far below the largest needs more iterations.
    large = before.S / before.S.max() > smallest
    assert values.max() < 1.25
    assert values[large].min() > 0.6
    # Directions are kept: U^T after V is diagonal.
    rotated = before.U.T @ after @ before.Vh.T
    off_diagonal = rotated - torch.diag(rotated.diagonal())
    assert off_diagonal.abs().max() < 2e-2


def test_stacked_matrices_equal_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((5, 24, 32), (5, 32, 24), (3, 16, 16)):
        stack = torch.randn(shape, generator=generator)
        alone = torch.stack([orthogonalise(matrix) for matrix in stack])
        torch.testing.assert_close(orthogonalise(stack), alone, atol=1e-5, rtol=1e-4)


class Tf32Products(TorchFunctionMode):
    """Operands of batched products are rounded to TF32's 10 bits behind the point, as CUDA's units take them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.bmm, torch.baddbmm):
            args = (*args[:-2], *(self.rounded(one) for one in args[-2:]))
        return func(*args, **(kwargs or {}))

    @staticmethod
    def rounded(values: torch.Tensor) -> torch.Tensor:
        bits = values.contiguous().view(torch.int32)
        return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("shape", [(4, 32, 96), (4, 96, 32), (64, 64)])
def test_the_update_hardly_depends_on_tf32_products(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(3)
    rank = min(shape[-2:])
    # Singular values over four powers of ten, as gradients have them.
    left, right = (torch.randn(*shape[:-2], side, rank, generator=generator) for side in shape[-2:])
    matrices = left * torch.logspace(0, -4, rank) @ right.mT
    exact = orthogonalise(matrices)
    with Tf32Products():
        coarse = orthogonalise(matrices)
    difference = float((coarse - exact).norm() / exact.norm())
    assert 1e-6 < difference < 0.01


def test_tf32_is_for_cuda_and_for_these_products_alone() -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    with newton_schulz_products(torch.device("cuda")):
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    assert torch.backends.cuda.matmul.fp32_precision == before != "tf32"
    with newton_schulz_products(torch.device("cpu")):
        assert torch.backends.cuda.matmul.fp32_precision == before


def test_zero_stays_zero() -> None:
    assert torch.equal(orthogonalise(torch.zeros(2, 4, 8)), torch.zeros(2, 4, 8))


@pytest.mark.parametrize("shape", [(24, 48), (48, 24), (32, 32)])
def test_a_single_matrix_moves_as_with_torch(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(shape, generator=generator)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimizers = (
        Muon([ours], lr=0.02, momentum=0.95, weight_decay=0.1),
        torch.optim.Muon(
            [theirs],
            lr=0.02,
            momentum=0.95,
            weight_decay=0.1,
            ns_steps=NEWTON_SCHULZ_ITERATIONS,
            adjust_lr_fn="original",
        ),
    )
    for _ in range(3):
        gradient = torch.randn(shape, generator=generator)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    # torch iterates in bfloat16: its update, of Frobenius norm about 0.02 * sqrt(rank), is off by a per cent or so.
    moved = (theirs.detach() - start).norm()
    assert float((ours.detach() - theirs.detach()).norm() / moved) < 0.03


def test_the_first_muon_update_by_hand() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4, 1))
    parameter.grad = torch.tensor([[3.0], [0.0], [4.0], [0.0]])
    Muon([parameter], lr=0.1).step()
    # One column: orthogonalised it is u * s with s near 1, and sqrt(rows / columns) = 2.
    direction = torch.tensor([[0.6], [0.0], [0.8], [0.0]])
    scale = float(parameter.detach()[0] / 0.6)
    torch.testing.assert_close(parameter.detach(), direction * scale)
    assert -0.2 * 1.3 < scale < -0.2 * 0.6


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_every_parameter_has_exactly_one_optimizer(name: str) -> None:
    model = MoETransformer(SMALL)
    training = TrainingConfig(optimizer=name, learning_rate=0.003, muon_learning_rate=0.02, weight_decay=0.1)  # type: ignore[arg-type]
    optimizers = build_optimizers(model, training)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    owned = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(owned) == sorted(id(parameter) for parameter in model.parameters())
    by_muon = {
        parameter_name
        for parameter_name, parameter in model.named_parameters()
        if any(parameter is p for o in optimizers if isinstance(o, Muon) for g in o.param_groups for p in g["params"])
    }
    if name == "adamw":
        assert not by_muon
    else:
        assert {n.split(".")[-2 if n.endswith("weight") else -1] for n in by_muon} == {
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
        }  # fmt: skip
    for group in groups:
        assert group["weight_decay"] == (0.1 if group["params"][0].ndim > 1 else 0.0)
    set_learning_rates(optimizers, 0.5)
    assert {group["lr"] for group in groups} == ({0.0015, 0.01} if name == "muon" else {0.0015})


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_the_embedding_has_its_own_learning_rate(name: str) -> None:
    model = MoETransformer(SMALL)
    training = TrainingConfig(optimizer=name, learning_rate=0.003, embedding_learning_rate=0.05)  # type: ignore[arg-type]
    first, *others = build_optimizers(model, training)[0].param_groups
    assert (first["params"], first["lr"]) == ([model.embedding.weight], 0.05)
    assert {group["lr"] for group in others} == {0.003}
    dense = MoETransformer(SMALL.model_copy(update={"first_dense_layers": 2}))
    groups = [group for optimizer in build_optimizers(dense, training) for group in optimizer.param_groups]
    owned = sorted(id(parameter) for group in groups for parameter in group["params"])
    assert owned == sorted(id(parameter) for parameter in dense.parameters()), "also without any router"


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (3, 16, 16)])
@pytest.mark.parametrize("iterations", [0, 1, 3, 5])
def test_iterating_the_gram_matrix_equals_iterating_the_matrix(shape: tuple[int, ...], iterations: int) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    a, b, c = QUINTIC
    x = matrices / matrices.norm(dim=(-2, -1), keepdim=True)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    torch.testing.assert_close(orthogonalise(matrices, iterations), x, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_state_goes_out_and_comes_back(name: str) -> None:
    training = TrainingConfig(optimizer=name)  # type: ignore[arg-type]
    torch.manual_seed(0)
    first = MoETransformer(SMALL)
    second = MoETransformer(SMALL)
    second.load_state_dict(first.state_dict())
    optimizers = build_optimizers(first, training)
    token_ids = torch.arange(32).view(2, 16)

    def step(model: MoETransformer, with_optimizers: list[torch.optim.Optimizer]) -> float:
        loss = model(token_ids).logits.logsumexp(-1).mean()
        loss.backward()
        for optimizer in with_optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return float(loss.detach())

    step(first, optimizers)
    second.load_state_dict(first.state_dict())
    restored = build_optimizers(second, training)
    tensors = optimizer_tensors(first, optimizers)
    restore_optimizers(second, restored, tensors)
    assert optimizer_tensors(second, restored).keys() == tensors.keys()
    for _ in range(2):
        assert step(first, optimizers) == step(second, restored)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert math.isfinite(step(first, optimizers))
