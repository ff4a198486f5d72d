"""Capture: exact, harmless, loud."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from moe_core.errors import TraceError
from moe_core.routing import RoutingTrace, capture


class Output(NamedTuple):
    router_logits: Tensor
    router_scores: Tensor
    router_indices: Tensor


class TinyRouter(nn.Module):
    is_moe_router = True
    score_function = "softmax"

    def __init__(self, dim: int, num_experts: int, top_k: int) -> None:
        super().__init__()
        self.num_experts, self.top_k = num_experts, top_k
        self.gate = nn.Linear(dim, num_experts, bias=False)

    def forward(self, x_TD: Tensor) -> Output:
        logits = self.gate(x_TD)
        scores, indices = logits.softmax(-1).topk(self.top_k)
        return Output(logits, scores, indices)


class TinyBlock(nn.Module):
    def __init__(self, dim: int, router: nn.Module, num_experts: int) -> None:
        super().__init__()
        self.router = router
        self.experts = nn.Parameter(torch.randn(num_experts, dim, dim) / dim)

    def forward(self, x_TD: Tensor) -> Tensor:
        _, scores, indices = self.router(x_TD)[:3]
        return x_TD + (torch.einsum("td,tkdf->tkf", x_TD, self.experts[indices]) * scores[..., None]).sum(1)


class TinyMoE(nn.Module):
    """Two MoE layers with a dense one between them."""

    def __init__(self, make: Callable[[], nn.Module] | None = None, num_experts: int = 4, top_k: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        make = make or (lambda: TinyRouter(8, num_experts, top_k))
        self.embedding = nn.Embedding(20, 8)
        self.layers = nn.ModuleList(
            [TinyBlock(8, make(), num_experts), nn.Linear(8, 8), TinyBlock(8, make(), num_experts)]
        )

    def forward(self, token_ids: Tensor) -> Tensor:
        x_TD = self.embedding(token_ids).flatten(0, -2)
        for layer in self.layers:
            x_TD = layer(x_TD)
        return x_TD.view(*token_ids.shape, -1)


def hooks_left(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


TOKENS = torch.tensor([[1, 2, 3], [4, 5, 6]])


def test_output_is_bit_identical_and_the_trace_is_what_the_router_chose() -> None:
    model = TinyMoE()
    plain = model(TOKENS)
    with capture(model) as recorder:
        captured = model(TOKENS)
    assert torch.equal(plain, captured)
    assert hooks_left(model) == 0
    trace = recorder.trace(token_ids=TOKENS, domains=["text"], source="here", vocabulary=[f"w{i}" for i in range(20)])
    assert trace.layers == [0, 2]
    assert (trace.num_experts, trace.top_k, trace.source, trace.domains) == (4, 2, "here", ["text"])
    first: Any = model.layers[0]
    logits, scores, indices = first.router(model.embedding(TOKENS).flatten(0, 1))[:3]
    assert np.array_equal(trace.router_indices[0], indices.numpy())
    assert np.array_equal(trace.router_scores[0], scores.detach().numpy())
    assert trace.router_logits is not None
    assert np.array_equal(trace.router_logits[0], logits.detach().half().numpy())
    assert trace.token_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert trace.document_ids.tolist() == [0, 0, 0, 1, 1, 1]
    assert trace.positions.tolist() == [0, 1, 2, 0, 1, 2]
    assert trace.vocabulary == {i: f"w{i}" for i in range(1, 7)}


def test_a_trace_made_under_autocast_is_the_same() -> None:
    model = TinyMoE()
    with capture(model) as recorder:
        model(TOKENS)
    expected = recorder.trace(token_ids=TOKENS)
    with torch.autocast("cpu"), capture(model) as recorder:
        with torch.autocast("cpu", enabled=False):
            model(TOKENS)
        trace = recorder.trace(token_ids=TOKENS)
    assert np.array_equal(trace.router_indices, expected.router_indices)
    assert np.array_equal(trace.router_scores, expected.router_scores)


def test_gradients_are_untouched() -> None:
    model = TinyMoE()
    model(TOKENS).square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    with capture(model):
        model(TOKENS).square().sum().backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(expected, model.parameters(), strict=True) if p.grad is not None)


def test_the_copy_survives_in_place_changes_of_the_model() -> None:
    class Vandal(TinyBlock):
        def forward(self, x_TD: Tensor) -> Tensor:
            output = self.router(x_TD)
            for tensor in output:
                tensor.zero_()
            return x_TD

    model = TinyMoE()
    model.layers[0] = Vandal(8, TinyRouter(8, 4, 2), 4)
    with torch.no_grad(), capture(model) as recorder:
        model(TOKENS)
    trace = recorder.trace(token_ids=TOKENS)
    assert (trace.router_scores[0] > 0).all()
    assert trace.router_indices[0].any()
    assert trace.router_logits is not None
    assert trace.router_logits[0].any()


def test_forward_passes_join_along_tokens_and_keep_drops_padding() -> None:
    model = TinyMoE()
    with capture(model) as whole:
        model(TOKENS)
    with capture(model, keep_logits=False) as stepwise:
        for row in TOKENS:
            model(row[:2])
            model(row[2:])
    assert stepwise.num_tokens == 6
    a, b = whole.trace(token_ids=TOKENS), stepwise.trace(token_ids=TOKENS)
    assert np.array_equal(a.router_indices, b.router_indices)
    assert b.router_logits is None
    keep = np.array([[True, True, False], [True, False, False]])
    kept = whole.trace(token_ids=TOKENS, keep=keep, domain_ids=[0, 0, 0, 1, 1, 1], domains=["a", "b"])
    assert kept.token_ids.tolist() == [1, 2, 4]
    assert kept.positions.tolist() == [0, 1, 0]
    assert kept.domain_ids.tolist() == [0, 0, 1]
    assert np.array_equal(kept.router_indices, a.router_indices[:, [0, 1, 3]])


def test_hooks_come_off_after_an_exception() -> None:
    model = TinyMoE()
    with pytest.raises(IndexError), capture(model):
        model(torch.tensor([99]))
    assert hooks_left(model) == 0


def test_nested_captures_record_independently() -> None:
    model = TinyMoE()
    with capture(model) as outer:
        model(TOKENS[:1])
        with capture(model) as inner:
            model(TOKENS[1:])
        assert hooks_left(model) == 3  # two routers and the model itself
    assert np.array_equal(
        outer.trace(token_ids=TOKENS).router_indices[:, 3:], inner.trace(token_ids=TOKENS[1:]).router_indices
    )


def test_other_threads_are_not_recorded() -> None:
    model = TinyMoE()
    traces: dict[int, RoutingTrace] = {}
    barrier = threading.Barrier(4, timeout=240)

    def session(number: int) -> None:
        tokens = torch.full((number + 1,), number)
        with capture(model) as recorder:
            barrier.wait()  # all hooks are on now
            model(tokens)
            barrier.wait()
        traces[number] = recorder.trace(token_ids=tokens)

    threads = [threading.Thread(target=session, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {number: trace.num_tokens for number, trace in traces.items()} == {0: 1, 1: 2, 2: 3, 3: 4}
    assert hooks_left(model) == 0


def test_a_capture_without_a_forward_is_an_error() -> None:
    with capture(TinyMoE()) as recorder:
        pass
    with pytest.raises(TraceError, match=r"'layers\.0\.router' stayed silent \(2 of 2 did\)"):
        recorder.trace(token_ids=[1])


def test_one_silent_router_is_an_error() -> None:
    model = TinyMoE()
    model.layers[2] = nn.ModuleDict({"unused": TinyRouter(8, 4, 2)})
    model.layers[2].forward = lambda x_TD: x_TD  # type: ignore[method-assign]
    with capture(model) as recorder:
        model(TOKENS)
    with pytest.raises(TraceError, match=r"'layers\.2\.unused' stayed silent \(1 of 2 did\)"):
        recorder.trace(token_ids=TOKENS)


def test_a_broken_off_forward_is_an_error() -> None:
    model = TinyMoE()
    with capture(model) as recorder:
        model(TOKENS)
        layer: Any = model.layers[0]
        layer.router(torch.zeros(3, 8))
    with pytest.raises(TraceError, match=r"different number of times \(layer 0: 2, layer 2: 1\)"):
        recorder.trace(token_ids=TOKENS)


@pytest.mark.parametrize(
    "broken",
    [
        lambda output: output.router_logits,
        lambda output: tuple(output[:2]),
        lambda output: Output(output[0], output[1][:, :1], output[2]),
        lambda output: Output(output[0][None], output[1], output[2]),
        lambda output: Output(output[0], output[1], output[2].float()),
        lambda output: Output(output[0][:, :3], output[1], output[2]),
        lambda output: Output(output[0], output[1], output[2][:1]),
    ],
)
def test_another_return_shape_is_an_error(broken: Callable[[Output], Any]) -> None:
    class Odd(TinyRouter):
        def forward(self, x_TD: Tensor) -> Any:
            return broken(super().forward(x_TD))

    model = TinyMoE(lambda: Odd(8, 4, 2))
    with pytest.raises(TraceError, match=r"'layers\.0\.router' returned"), capture(model):
        model(TOKENS)
    assert hooks_left(model) == 0


def test_a_model_that_cannot_be_captured_is_named() -> None:
    with pytest.raises(TraceError, match="Linear has no router"), capture(nn.Linear(2, 2)):
        pass
    with pytest.raises(TraceError, match="no layer number"), capture(nn.ModuleDict({"router": TinyRouter(8, 4, 2)})):
        pass
    model = TinyMoE()
    model.layers[0].second = TinyRouter(8, 4, 2)
    with pytest.raises(TraceError, match="layer 0 has two routers"), capture(model):
        pass
    routers = iter([TinyRouter(8, 4, 2), TinyRouter(8, 4, 2)])
    model = TinyMoE(lambda: next(routers))
    model.layers[2].router.score_function = "sigmoid"  # type: ignore[union-attr]
    with pytest.raises(TraceError, match="different score functions"), capture(model):
        pass


def test_layers_that_differ_are_an_error() -> None:
    routers = iter([TinyRouter(8, 4, 2), TinyRouter(8, 3, 2)])
    model = TinyMoE(lambda: next(routers))
    with capture(model) as recorder:
        model(TOKENS)
    with pytest.raises(TraceError, match=r"differ in \[T,K,E\]"):
        recorder.trace(token_ids=TOKENS)


def test_wrong_lengths_are_an_error() -> None:
    model = TinyMoE()
    with capture(model) as recorder:
        model(TOKENS)
    with pytest.raises(TraceError, match="token_ids has 5 entries; expected 6"):
        recorder.trace(token_ids=[1, 2, 3, 4, 5])
    with pytest.raises(TraceError, match="domain_ids has 2 entries; expected 6"):
        recorder.trace(token_ids=TOKENS, domain_ids=[0, 0])
    for name in ("source_ids", "predicted_ids"):
        with pytest.raises(TraceError, match=f"{name} has 1 entries; expected 6"):
            recorder.trace(token_ids=TOKENS, **{name: [0]})
    with pytest.raises(TraceError, match="keep is int64; expected bool"):
        recorder.trace(token_ids=TOKENS, keep=[1, 1, 1, 0, 0, 0])
    with pytest.raises(TraceError, match="2 domains but no domain_ids"):
        recorder.trace(token_ids=TOKENS, domains=["a", "b"])


def test_sources_and_guesses_go_with_their_tokens() -> None:
    model = TinyMoE()
    with capture(model) as recorder:
        model(TOKENS)
    words = [f"w{i}" for i in range(8)]
    trace = recorder.trace(
        token_ids=TOKENS,
        source_ids=[[3, 3, 3], [4, 4, 4]],
        predicted_ids=torch.tensor([[2, 3, 7], [5, 6, 19]]),  # the model's output is wider than the vocabulary
        keep=[[True, True, False], [True, True, True]],
        vocabulary=words,
    )
    assert trace.source_ids.tolist() == [3, 3, 4, 4, 4]
    assert trace.predicted_ids is not None
    assert trace.predicted_ids.tolist() == [2, 3, 5, 6, 19]
    assert trace.vocabulary == {i: f"w{i}" for i in (1, 2, 3, 4, 5, 6)}
    plain = recorder.trace(token_ids=TOKENS)
    assert plain.predicted_ids is None
    assert plain.source_ids.tolist() == plain.document_ids.tolist()


def test_analysis_does_not_load_torch() -> None:
    program = "import sys, moe_core.routing.baselines; assert not {'torch', 'scipy.stats'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
