"""Gradient checkpointing computes parts of a forward pass again in the backward pass: each token is recorded once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from routers_support import model_with, tokens
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from moe_core.routing import capture
from moe_core.routing.trace.trace import RoutingTrace

IDS = torch.arange(5, 25).view(2, 10)
WAYS = [True, False]


def theirs(family: str, reentrant: bool | None) -> Any:
    pytest.importorskip("transformers", reason="Hugging Face models need requirements-huggingface.txt")
    from bench.family_configs import tiny_model

    model: Any = tiny_model(family).train()
    if reentrant is not None:
        model.config.use_cache = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the name that most programs call it by
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
    return model


def assert_same(found: RoutingTrace, expected: RoutingTrace) -> None:
    assert found.num_tokens == expected.num_tokens
    assert np.array_equal(found.router_indices, expected.router_indices)
    assert np.allclose(found.router_scores, expected.router_scores, atol=1e-6)  # without gradients products differ


@pytest.mark.parametrize("reentrant", WAYS)
@pytest.mark.parametrize("family", ["qwen3_moe", "dbrx", "llama4", "doge"])
def test_a_training_step_of_a_transformers_model_is_recorded_once(family: str, reentrant: bool) -> None:
    plain, recomputing = theirs(family, None), theirs(family, reentrant)
    with capture(plain) as expected:
        plain(input_ids=IDS, labels=IDS).loss.backward()
    with capture(recomputing) as recorder:
        recomputing(input_ids=IDS, labels=IDS).loss.backward()
    assert recorder.num_tokens == 20
    assert_same(recorder.trace(token_ids=IDS), expected.trace(token_ids=IDS))
    weight = next(parameter for name, parameter in recomputing.named_parameters() if "q_proj" in name or "Wqkv" in name)
    assert weight.grad is not None


def checkpointed(model: nn.Module, reentrant: bool) -> None:
    """Every layer recomputes itself."""
    for layer in model.layers:  # type: ignore[union-attr]
        forward = layer.forward

        def again(*args: Any, forward: Callable[..., Any] = forward) -> Any:
            return checkpoint(forward, *args, use_reentrant=reentrant)

        layer.forward = again  # type: ignore[method-assign]


@pytest.mark.parametrize("reentrant", WAYS)
@pytest.mark.parametrize("variant", ["softmax", "noisy", "document_pool"])
def test_several_steps_of_our_own_model_with_accumulated_gradients(variant: str, reentrant: bool) -> None:
    parts = [tokens(2, 12, seed) for seed in (1, 2, 3)]
    traces, gradients = [], []
    for recompute in (False, True):
        model = model_with(variant).train()
        if recompute:
            checkpointed(model, reentrant)
        torch.manual_seed(4)
        with capture(model) as recorder:
            for part in parts:
                model(part).logits.float().logsumexp(dim=-1).sum().backward()
            model(parts[0])  # not followed by a backward pass
        traces.append(recorder.trace(token_ids=torch.cat([part.flatten() for part in [*parts, parts[0]]])))
        gradients.append(model.embedding.weight.grad)
    assert_same(traces[1], traces[0])
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("reentrant", WAYS)
def test_what_never_goes_backward_is_recorded_too(reentrant: bool) -> None:
    model, ids = model_with("softmax").train(), tokens()
    checkpointed(model, reentrant)
    with capture(model) as recorder:
        logits = model(ids).logits
    assert recorder.num_tokens == ids.numel()
    logits.sum().backward()  # after the capture: nothing more
    assert recorder.num_tokens == ids.numel()


@pytest.mark.parametrize("reentrant", WAYS)
def test_a_backward_pass_between_two_forward_passes_and_twice_over_one(reentrant: bool) -> None:
    model, ids = model_with("softmax").train(), tokens()
    checkpointed(model, reentrant)
    with capture(model) as recorder:
        first = model(ids).logits.sum()
        second = model(ids).logits.sum()
        first.backward(retain_graph=not reentrant)
        if not reentrant:
            first.backward()
        second.backward()
        model(ids)
    assert recorder.num_tokens == 3 * ids.numel()
    with capture(model) as outer, capture(model) as inner:
        model(ids).logits.sum().backward()
    assert outer.num_tokens == inner.num_tokens == ids.numel()


@pytest.mark.parametrize("reentrant", WAYS)
def test_a_whole_model_or_a_sequence_under_one_checkpoint(reentrant: bool) -> None:
    model, ids = model_with("softmax").train(), tokens()
    with capture(model) as recorder:
        states = model.embedding(ids).detach().requires_grad_()
        checkpoint(lambda _: model(ids).logits, states, use_reentrant=reentrant).sum().backward()
    trace = recorder.trace(token_ids=ids)
    assert trace.num_tokens == ids.numel()
    assert len(set(trace.document_ids.tolist())) == len(ids)

    class Block(nn.Module):
        def __init__(self, moe: nn.Module) -> None:
            super().__init__()
            self.moe = moe

        def forward(self, states_TD: Tensor) -> Tensor:
            out: Tensor = self.moe(states_TD)[0]
            return states_TD + out

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(Block(layer.moe) for layer in model_with("softmax").train().layers))  # type: ignore[arg-type, union-attr]

        def forward(self, states_TD: Tensor) -> Tensor:
            out: Tensor = checkpoint_sequential(self.layers, 2, states_TD, use_reentrant=reentrant)
            return out

    stack = Stack()
    with capture(stack) as recorder:
        stack(torch.randn(7, 16, requires_grad=True)).sum().backward()
    assert recorder.trace(token_ids=torch.zeros(7, dtype=torch.int64)).num_tokens == 7
