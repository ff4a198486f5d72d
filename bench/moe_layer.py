"""One MoE layer, router and experts, at many sizes: `python main.py bench --only moe_layer`.

Width 256, experts of hidden width 1,024, two a token, float32, weights drawn at random, so that the load is nearly
even. Forward without gradients, and forward and backward with those of the input and of all weights. Outputs and
gradients of all ways must agree before they are timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.references import (
    HAS_TRANSFORMERS,
    EqualProducts,
    ModuleLoop,
    StackedLoop,
    absent_rows,
    affordable_rounds,
    mixtral_block,
)
from bench.results import Goal, Result, compared
from bench.suite import Scale
from moe_core.config import ModelConfig
from moe_core.experiments.timing import interleave
from moe_core.model.feed_forward import MoE

DIM, HIDDEN, TOP_K = 256, 1024, 2
TOKENS, EXPERTS = (1, 8, 64, 512, 4096), (8, 16, 64)
OURS, LOOP, MODULES = "ours", "naive loop", "naive loop over modules"
EAGER, GROUPED, PRODUCTS = "Mixtral eager", "Mixtral grouped_mm", "equal matrix products"
SECONDS = 5.0
"""Rounds of one case are fewer than asked for where they would take longer than this; two at least."""
MIN_SECONDS = 0.02
"""A way quicker than this is called as often in a row as it takes to fill them."""

GOALS: Mapping[tuple[int, int, bool, str], Goal] = {
    (16, 512, True, LOOP): Goal(4.0, 5.4),
    (16, 512, True, EAGER): Goal(2.0, 2.8),
    (8, 4096, False, PRODUCTS): Goal(0.75, 0.9),
    (8, 4096, True, PRODUCTS): Goal(0.65, 0.8),
}
"""Goals by number of experts, tokens, whether the backward pass is included, and peer."""


@dataclass(frozen=True)
class Way:
    """One implementation: a module, and how its [T, D] output comes out of it."""

    module: nn.Module
    output: Callable[[Tensor], Tensor]


def run(scale: Scale) -> list[Result]:
    """One row for each size, pass and other way."""
    tokens, experts = ((1, 8), (4,)) if scale.smoke else (TOKENS, EXPERTS)
    dim, hidden = (16, 32) if scale.smoke else (DIM, HIDDEN)
    sizes = [(E, T) for E in experts for T in tokens]
    rows = absent_rows("one MoE layer")
    for number, (E, T) in enumerate(sizes):
        scale.progress("MoE layer", number, len(sizes))
        rows += measure(E, T, dim, hidden, scale)
    return rows


def measure(num_experts: int, tokens: int, dim: int, hidden: int, scale: Scale) -> list[Result]:
    """The rows of one size."""
    torch.manual_seed(0)
    ways = build_ways(num_experts, dim, hidden)
    x_TD = torch.randn(tokens, dim, requires_grad=True)
    d_out_TD = torch.randn(tokens, dim)
    check_equal(ways, x_TD, d_out_TD)
    products = EqualProducts(tokens * TOP_K, dim, hidden)
    rows = []
    for backward in (False, True):
        call = partial(forward_backward, x_TD=x_TD, d_out_TD=d_out_TD) if backward else partial(forward, x_TD=x_TD)
        sides: dict[str, Callable[[], object]] = {name: partial(call, way) for name, way in ways.items()}
        sides[PRODUCTS] = products.forward_backward if backward else products.forward
        rounds = affordable_rounds(sides, scale.rounds, SECONDS)
        timings = interleave(sides, rounds=rounds, warmup=0, min_seconds=0.0 if scale.smoke else MIN_SECONDS)
        case = f"{'forward+backward' if backward else 'forward'}, {num_experts} experts, {tokens:,} tokens"
        for name in sides:
            if name != OURS:
                goal = None if scale.smoke else GOALS.get((num_experts, tokens, backward, name))
                rows.append(compared(case, timings, OURS, name, goal=goal))
    return rows


def build_ways(num_experts: int, dim: int, hidden: int) -> dict[str, Way]:
    """Ours and the others, with the same random weights; those of transformers where it is installed."""
    config = ModelConfig(
        dim=dim, num_experts=num_experts, top_k=TOP_K, expert_hidden_dim=hidden, qk_norm=False, num_layers=1
    )
    ours = MoE(config)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.02)
    ways = {OURS: Way(ours, lambda x: ours(x)[0])}
    for name, kind in ((LOOP, StackedLoop), (MODULES, ModuleLoop)):
        ways[name] = _naive(ours, kind(ours.experts))
    if HAS_TRANSFORMERS:
        for name, implementation in ((EAGER, "eager"), (GROUPED, "grouped_mm")):
            ways[name] = _block(mixtral_block(ours, config, implementation))  # type: ignore[arg-type]
    return ways


def _naive(ours: MoE, experts: nn.Module) -> Way:
    def output(x_TD: Tensor) -> Tensor:
        routed = ours.router(x_TD)
        out_TD: Tensor = experts(x_TD, routed.router_scores, routed.router_indices)
        return out_TD

    return Way(nn.ModuleList([ours.router, experts]), output)


def _block(block: Any) -> Way:
    return Way(block, lambda x: block(x[None])[0])


def forward(way: Way, x_TD: Tensor) -> Tensor:
    """[T, D], no gradients."""
    with torch.inference_mode():
        return way.output(x_TD)


def forward_backward(way: Way, x_TD: Tensor, d_out_TD: Tensor) -> Tensor:
    """[T, D]; leaves the gradients in x and in the module."""
    x_TD.grad = None
    way.module.zero_grad()
    out_TD = way.output(x_TD)
    torch.autograd.backward(out_TD, d_out_TD)
    return out_TD


def check_equal(ways: Mapping[str, Way], x_TD: Tensor, d_out_TD: Tensor) -> None:
    """Raise AssertionError unless outputs, gradients of the input and the sums of the weights' gradients agree."""
    expected: dict[str, Tensor] = {}
    for name, way in ways.items():
        found = {"forward": forward(way, x_TD), "output": forward_backward(way, x_TD, d_out_TD).detach()}
        assert x_TD.grad is not None
        found["gradient of the input"] = x_TD.grad
        gradients = [parameter.grad for parameter in way.module.parameters() if parameter.grad is not None]
        found["norm of all gradients"] = torch.stack([one.square().sum() for one in gradients]).sum().sqrt()
        expected = expected or found
        for what, value in found.items():
            assert torch.allclose(value, expected[what], rtol=1e-3, atol=1e-5), f"{name} and {OURS} differ in {what}"
