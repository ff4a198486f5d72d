"""Capture and interventions on transformers models in use: padding, generation, threads, parts, and odd ones."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers", reason="Hugging Face models need requirements-huggingface.txt")

from bench.family_configs import tiny_model  # noqa: E402
from moe_core.errors import TraceError, UsageError  # noqa: E402
from moe_core.routing import (  # noqa: E402
    RoutingTrace,
    capture,
    intervene,
    metrics,
)
from moe_core.routing.instruments.find import find_routers  # noqa: E402

TOKENS = torch.tensor([[5, 6, 7, 8, 9], [30, 31, 32, 33, 34]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> None:
    transformers.logging.set_verbosity_error()


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("qwen3_moe")


def read(model: Any, tokens: Tensor, **inputs: Any) -> RoutingTrace:
    with torch.no_grad(), capture(model) as recorder:
        model(input_ids=tokens, **inputs)
    return recorder.trace(token_ids=tokens, attention_mask=inputs.get("attention_mask"))


def test_the_output_is_bit_identical_and_the_hooks_come_off(model: Any) -> None:
    with torch.no_grad():
        plain = model(input_ids=TOKENS).logits
        with capture(model):
            captured = model(input_ids=TOKENS).logits
    assert torch.equal(plain, captured)
    routers = [router.module for router in find_routers(model).values()]
    assert not any(module._forward_pre_hooks for module in model.modules())
    # The library leaves hooks of its own on the routers; ours would be on top of these.
    before = [len(router._forward_hooks) for router in routers]
    with pytest.raises(ValueError), capture(model):
        model(input_ids=TOKENS, inputs_embeds=TOKENS)
    assert [len(router._forward_hooks) for router in routers] == before


def test_padding_drops_out_whichever_side_it_is_on(model: Any) -> None:
    alone = read(model, TOKENS[:1, 2:])
    left = read(model, TOKENS, attention_mask=MASK)
    right = read(model, TOKENS.roll(-2, dims=1)[:1], attention_mask=MASK.roll(-2, dims=1)[:1])
    assert left.token_ids.tolist() == [7, 8, 9, 30, 31, 32, 33, 34]
    assert left.positions.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert left.document_ids.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    for padded in (left, right):
        assert np.array_equal(padded.router_indices[:, :3], alone.router_indices)
        assert np.allclose(padded.router_scores[:, :3], alone.router_scores, atol=1e-5)
    with capture(model) as recorder:
        model(input_ids=TOKENS)
    with pytest.raises(TraceError, match="keep and attention_mask were both given"):
        recorder.trace(token_ids=TOKENS, keep=MASK.bool(), attention_mask=MASK)
    with pytest.raises(TraceError, match="attention_mask has 5 entries; expected 10"):
        recorder.trace(token_ids=TOKENS, attention_mask=MASK[0])


def test_generation_is_captured_step_by_step_as_if_read_at_once(model: Any) -> None:
    with capture(model) as recorder:
        written = model.generate(
            input_ids=TOKENS,
            attention_mask=torch.ones_like(TOKENS),
            max_new_tokens=4,
            do_sample=False,
            eos_token_id=None,
        )
    seen = written[:, :-1]  # the last one was written, not read
    stepwise, at_once = recorder.trace(token_ids=seen), read(model, seen)
    assert stepwise.num_tokens == 2 * 8
    assert np.array_equal(stepwise.router_indices, at_once.router_indices)
    assert np.allclose(stepwise.router_scores, at_once.router_scores, atol=1e-5)
    assert stepwise.positions.tolist() == [*range(8), *range(8)]
    with pytest.raises(TraceError, match="token_ids has 18 entries; expected 16"):
        recorder.trace(token_ids=written)


def test_texts_read_one_after_another_stay_in_their_order(model: Any) -> None:
    rows = torch.arange(3, 19).view(4, 4)
    with torch.no_grad(), capture(model) as recorder:
        model(input_ids=rows[:2])
        model(input_ids=rows[2:])
    assert np.array_equal(recorder.trace(token_ids=rows).router_indices, read(model, rows).router_indices)


def test_an_intervention_lasts_through_generation(model: Any) -> None:
    with capture(model) as recorder, intervene(model, ablate=[(1, 3)], force=[(0, 2)], mode="reroute"):
        written = model.generate(
            input_ids=TOKENS,
            attention_mask=torch.ones_like(TOKENS),
            max_new_tokens=4,
            do_sample=False,
            eos_token_id=None,
        )
    trace = recorder.trace(token_ids=written[:, :-1])
    assert (trace.router_indices[0] == 2).any(axis=1).all()
    assert not (trace.router_indices[1] == 3).any()


def test_another_thread_sees_neither_capture_nor_intervention(model: Any) -> None:
    with torch.no_grad():
        plain = model(input_ids=TOKENS).logits
    barrier, found = threading.Barrier(2, timeout=240), {}

    def bystander() -> None:
        barrier.wait()
        with torch.no_grad():
            found["logits"] = model(input_ids=TOKENS).logits
        barrier.wait()

    thread = threading.Thread(target=bystander)
    thread.start()
    with torch.no_grad(), intervene(model, top_k=1, temperature=2.0), capture(model) as recorder:
        barrier.wait()
        changed = model(input_ids=TOKENS).logits
        barrier.wait()
    thread.join()
    assert torch.equal(found["logits"], plain)
    assert not torch.equal(changed, plain)
    assert recorder.trace(token_ids=TOKENS).top_k == 1


def test_nested_interventions_add_up_and_captures_see_their_sum(model: Any) -> None:
    plain = read(model, TOKENS)
    first, second = plain.router_indices[1, 0].tolist()
    with (
        torch.no_grad(),
        capture(model) as outside,
        intervene(model, ablate=[(1, first)]),
        capture(model) as inside,
        intervene(model, ablate=[(1, second)], mode="renormalise"),
    ):
        model(input_ids=TOKENS)
    for recorder in (outside, inside):
        trace = recorder.trace(token_ids=TOKENS)
        assert trace.router_indices[1, 0].tolist() == [-1, -1]
        assert trace.router_scores[1, 0].tolist() == [0, 0]


def test_half_precision_stays_half_precision() -> None:
    model = tiny_model("mixtral").to(torch.bfloat16)
    with (
        torch.no_grad(),
        capture(model) as recorder,
        intervene(model, ablate=[(0, 1)], mode="reroute", temperature=1.5),
    ):
        output = model(input_ids=TOKENS).logits
    assert output.dtype == torch.bfloat16
    assert not (recorder.trace(token_ids=TOKENS).router_indices[0] == 1).any()


def test_groups_of_experts_neither_hide_a_forced_one_nor_keep_an_absent_one() -> None:
    model: Any = tiny_model("deepseek_v3")
    for router in find_routers(model).values():
        router.module.num_group, router.module.topk_group = 4, 1  # type: ignore[assignment]
    for expert in range(8):
        with torch.no_grad(), capture(model) as recorder, intervene(model, force=[(0, expert)], ablate=[(1, expert)]):
            model(input_ids=TOKENS)
        trace = recorder.trace(token_ids=TOKENS)
        assert (trace.router_indices[0] == expert).any(axis=1).all()
        assert (trace.router_indices[0] // 2 == expert // 2).all()  # its group came with it
        assert not (trace.router_indices[1] == expert).any()
    words = r"router 'model\.layers\.0\.mlp\.gate' of deepseek_v3 keeps to its own rule and leaves expert 0:\d out"
    with torch.no_grad(), pytest.raises(UsageError, match=words), intervene(model, force=[(0, 0), (0, 7)]):
        model(input_ids=TOKENS)


def test_a_token_with_no_other_expert_left_gets_an_empty_slot(model: Any) -> None:
    absent = [(0, expert) for expert in range(7)]
    with torch.no_grad(), capture(model) as recorder, intervene(model, ablate=absent, mode="reroute"):
        model(input_ids=TOKENS)
    indices = recorder.trace(token_ids=TOKENS).router_indices[0]
    assert (np.sort(indices, axis=1) == [-1, 7]).all()


def test_encoder_and_decoder_are_captured_as_parts() -> None:
    config = transformers.SwitchTransformersConfig(
        vocab_size=99,
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=2,
        num_heads=2,
        num_experts=4,
        expert_capacity=2,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
    )
    torch.manual_seed(0)
    model = transformers.SwitchTransformersForConditionalGeneration(config).eval()
    with pytest.raises(TraceError, match=r"capture\(model\.get_submodule\('decoder'\)\)"), capture(model):
        pass
    with torch.no_grad(), capture(model.encoder) as source, capture(model.decoder) as target:
        model(input_ids=TOKENS, decoder_input_ids=TOKENS[:, :2])
    read_by_encoder = source.trace(token_ids=TOKENS)
    assert read_by_encoder.layers == [1]
    assert target.trace(token_ids=TOKENS[:, :2]).num_tokens == 4
    # Two tokens of each text fit into an expert; the others have none.
    for row in read_by_encoder.router_indices[0].reshape(2, 5):
        assert (np.bincount(row[row >= 0], minlength=4) <= 2).all()
    assert (read_by_encoder.router_indices[0] == -1).any()
    assert (read_by_encoder.router_scores[0][read_by_encoder.router_indices[0] == -1] == 0).all()


def test_images_beside_the_text_are_an_error() -> None:
    model = tiny_model("ernie4_5_vl_moe")
    images = torch.tensor([[0, 0, 1, 1, 0]] * 2)
    with torch.no_grad(), pytest.raises(TraceError, match="only text can be captured exactly"), capture(model):
        model(input_ids=TOKENS, moe_mm_token_type_ids=images)


def test_router_entropy_of_sqrtsoftplus_by_hand() -> None:
    # sqrt(ln(1 + e^x)) of x = ln(e - 1) and ln(e^4 - 1): 1 and 2, so shares 1/3 and 2/3.
    trace = RoutingTrace.from_arrays(
        router_indices=[[1]],
        router_scores=[[1.0]],
        router_logits=[[np.log(np.e - 1), np.log(np.e**4 - 1)]],
        num_experts=2,
        token_ids=[0],
        score_function="sqrtsoftplus",
    )
    assert metrics.router_entropy(trace)["confidence"][0] == pytest.approx(2 / 3, rel=1e-3)


# ---- models that the library does not know ----


class Experts(nn.Module):
    """Called with the choice, by the library's names."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.num_experts = count
        self.weight = nn.Parameter(torch.randn(count, 8, 8) / 8)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        assert (top_k_index >= 0).all()
        return (torch.einsum("td,tkdf->tkf", hidden_states, self.weight[top_k_index]) * top_k_weights[..., None]).sum(1)


class Block(nn.Module):
    """Chooses in its own forward: there is no router module."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.chooser = nn.Linear(8, count, bias=False)
        self.experts = Experts(count)

    def forward(self, x_TD: Tensor) -> Tensor:
        weights, indices = self.chooser(x_TD).softmax(-1).topk(2)
        out_TD: Tensor = x_TD + self.experts(x_TD, indices, weights)
        return out_TD


class Unknown(nn.Module):
    def __init__(self, *counts: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(99, 8)
        self.layers = nn.ModuleList([Block(count) for count in counts])

    def forward(self, input_ids: Tensor) -> Tensor:
        x_TD = self.embedding(input_ids).flatten(0, -2)
        for layer in self.layers:
            x_TD = layer(x_TD)
        return x_TD


def test_what_the_experts_are_called_with_is_taken_where_no_module_tells_the_choice() -> None:
    model = Unknown(4, 4).eval()
    trace = read(model, TOKENS)
    assert (trace.layers, trace.num_experts, trace.top_k, trace.router_logits) == ([0, 1], 4, 2, None)
    x_TD = model.embedding(TOKENS).flatten(0, 1)
    weights, indices = model.layers[0].chooser(x_TD).softmax(-1).topk(2)  # type: ignore[operator, union-attr]
    assert np.array_equal(trace.router_indices[0], indices.numpy())
    assert np.array_equal(trace.router_scores[0], weights.detach().numpy())
    with torch.no_grad(), capture(model) as recorder, intervene(model, ablate=[(0, 1)]):
        model(TOKENS)
    changed = recorder.trace(token_ids=TOKENS)
    assert np.array_equal(
        changed.router_indices[0], np.where(trace.router_indices[0] == 1, -1, trace.router_indices[0])
    )
    words = "has no module that could choose again; use ablate with mode zero or renormalise"
    with pytest.raises(UsageError, match=words), intervene(model, top_k=1):
        pass


def test_layers_with_other_numbers_of_experts_are_an_error() -> None:
    model = Unknown(4, 6)
    with torch.no_grad(), capture(model) as recorder:
        model(TOKENS)
    with pytest.raises(TraceError, match=r"the routers differ in \[T,K,E\]"):
        recorder.trace(token_ids=TOKENS)
