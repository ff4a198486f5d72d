"""An intervention that changes nothing, because its routers are never called, says so."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from routers_support import model_with, tokens
from torch import nn

from moe_core.errors import TraceError, UsageError
from moe_core.routing import capture, intervene

IDS = torch.arange(5, 25).view(2, 10)
CHANGES: list[dict[str, Any]] = [{"ablate": [(1, 0)]}, {"force": [(1, 3)]}, {"temperature": 2.0}]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def hooks_left(model: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


def theirs() -> Any:
    pytest.importorskip("transformers", reason="Hugging Face models need requirements-huggingface.txt")
    from bench.family_configs import tiny_model

    return tiny_model("qwen3_moe")


def as_wrapper(model: Any) -> tuple[Any, Any]:
    return model, torch.compile(model, backend="eager")


def given_wrapper(model: Any) -> tuple[Any, Any]:
    compiled = torch.compile(model, backend="eager")
    return compiled, compiled


def in_place(model: Any) -> tuple[Any, Any]:
    model.compile(backend="eager")
    return model, model


def layers_in_place(model: Any) -> tuple[Any, Any]:
    for layer in model.model.layers:
        layer.compile(backend="eager")
    return model, model


def layers_wrapped(model: Any) -> tuple[Any, Any]:
    for number, layer in enumerate(model.model.layers):
        model.model.layers[number] = torch.compile(layer, backend="eager")
    return model, model


def blocks_in_place(model: Any) -> tuple[Any, Any]:
    for layer in model.model.layers:
        layer.mlp.compile(backend="eager")
    return model, model


def method_compiled(model: Any) -> tuple[Any, Any]:
    model.forward = torch.compile(model.forward, backend="eager")
    return model, model


def inner_model_wrapped(model: Any) -> tuple[Any, Any]:
    model.model = torch.compile(model.model, backend="eager")
    return model, model


COMPILED = [
    as_wrapper, given_wrapper, in_place, layers_in_place, layers_wrapped, blocks_in_place, method_compiled,
    inner_model_wrapped,
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("make", COMPILED)
def test_a_compiled_model_is_noticed_and_the_remedy_works(make: Callable[[Any], tuple[Any, Any]]) -> None:
    model = theirs()
    with torch.no_grad():
        plain = model(input_ids=IDS).logits
        model, call = make(model)
        call(input_ids=IDS)  # compiled now, without any hook
        for change in CHANGES:
            with pytest.raises(TraceError, match=r"stayed silent.*compiled.*force_eager"), intervene(model, **change):
                call(input_ids=IDS)
        with torch.compiler.set_stance("force_eager"), intervene(model, ablate=[(1, 0)]):
            changed = call(input_ids=IDS).logits
        with capture(model) as recorder:
            call(input_ids=IDS)
    with pytest.raises(TraceError, match=r"stayed silent.*force_eager"):
        recorder.trace(token_ids=IDS)
    assert (changed - plain).abs().max() > 1e-3
    assert hooks_left(model) == 0


@pytest.mark.slow
@pytest.mark.parametrize("make", [as_wrapper, layers_in_place, blocks_in_place, method_compiled])
def test_a_model_that_is_compiled_inside_the_block_is_changed_or_noticed(
    make: Callable[[Any], tuple[Any, Any]],
) -> None:
    model = theirs()
    with torch.no_grad():
        plain = model(input_ids=IDS).logits
        model, call = make(model)
        outcomes = []
        with intervene(model, ablate=[(1, 0)]):
            for _ in range(2):
                try:
                    outcomes.append((call(input_ids=IDS).logits - plain).abs().max().item() > 1e-3)
                except TraceError as error:
                    outcomes.append("stayed silent" in str(error))
        assert outcomes == [True, True]
        assert torch.equal(call(input_ids=IDS).logits, plain), "nothing is left behind"


def replace_after(model: Any) -> None:
    model.model.layers[1].mlp.gate = type("Gate", (nn.Module,), {"forward": model.model.layers[1].mlp.gate.forward})()


def patch_block(model: Any) -> None:
    block = model.model.layers[1].mlp
    gate = block.gate.forward

    def fused(self: Any, hidden_states: Any) -> Any:
        flat = hidden_states.reshape(-1, hidden_states.shape[-1])
        _, weights, indices = gate(flat)  # not through the module's call
        return self.experts(flat, indices, weights).reshape(hidden_states.shape)

    block.forward = types.MethodType(fused, block)


def skip_layer(model: Any) -> None:
    model.model.layers[1].forward = lambda hidden_states, *_args, **_kwargs: hidden_states


def drop_layer(model: Any) -> None:
    model.model.layers = model.model.layers[:1]


@pytest.mark.parametrize("change_model", [replace_after, patch_block, skip_layer, drop_layer])
def test_a_router_that_is_never_called_is_noticed(change_model: Callable[[Any], None]) -> None:
    model = theirs()
    with torch.no_grad(), intervene(model, ablate=[(1, 0)]):
        change_model(model)
        with pytest.raises(TraceError, match=r"router 'model\.layers\.1\.mlp\.gate' of qwen3_moe stayed silent"):
            model(input_ids=IDS)
    with torch.no_grad(), intervene(theirs(), ablate=[(0, 0)]):
        pass  # no forward pass, nothing to notice


def test_a_patched_router_method_is_no_silence_and_other_layers_may_be_skipped() -> None:
    model = theirs()
    with torch.no_grad():
        plain = model(input_ids=IDS).logits
        gate = model.model.layers[1].mlp.gate
        gate.forward = types.MethodType(type(gate).forward, gate)
        with intervene(model, ablate=[(1, 0)]):
            assert not torch.equal(model(input_ids=IDS).logits, plain)
            assert not torch.equal(model.model(input_ids=IDS).last_hidden_state, plain)
        skip_layer(model)
        with intervene(model, ablate=[(0, 0)]):
            model(input_ids=IDS)


def test_part_of_a_model_may_run_alone() -> None:
    """The layers that are not around what runs have nothing to answer for."""
    model, ids = model_with("softmax"), tokens()
    with torch.no_grad(), intervene(model, ablate=[(0, 1), (2, 1)]):
        states = model.embedding(ids)
        model.layers[0].moe(states.flatten(0, 1))  # type: ignore[union-attr, operator]
        model.layers[2].moe.router = copy.deepcopy(model.layers[1].moe.router)  # type: ignore[union-attr]
        model.layers[2].moe.router._forward_hooks.clear()  # type: ignore[union-attr]
        with pytest.raises(TraceError, match=r"'layers\.2\.moe\.router' stayed silent"):
            model(ids)


def test_own_models_notice_too_whoever_else_intervenes_and_captures() -> None:
    model, ids = model_with("softmax"), tokens()
    with torch.no_grad():
        with intervene(model, ablate=[(0, 1)]), capture(model) as recorder, intervene(model, top_k=1):
            model(ids)
        assert recorder.num_tokens == ids.numel()
        model.layers[0].compile(backend="eager")
        model(ids)
        with (
            pytest.raises(TraceError, match="stayed silent"),
            intervene(model, ablate=[(0, 1)]),
            intervene(model, top_k=1),
        ):
            model(ids)
    assert hooks_left(model) == 0


def test_an_error_inside_the_block_is_the_one_that_is_seen() -> None:
    model, ids = model_with("softmax"), tokens()

    def fail(*_: object) -> None:
        raise ZeroDivisionError("mine")

    handle = model.layers[0].register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError, match="mine"), intervene(model, ablate=[(1, 0)]):
        model(ids)
    handle.remove()
    with pytest.raises(KeyError), intervene(model, ablate=[(1, 0)]):
        raise KeyError
    with pytest.raises(UsageError, match="training mode"), intervene(model.train(), ablate=[(1, 0)]):
        model(ids)
    model.eval()
    with torch.no_grad(), intervene(model, ablate=[(1, 0)]):  # a pass that was broken off before is forgotten
        handle = model.layers[0].register_forward_pre_hook(fail)
        with pytest.raises(ZeroDivisionError):
            model(ids)
        handle.remove()
        model(ids)
    assert hooks_left(model) == 0


def test_a_text_that_is_written_token_by_token_goes_through() -> None:
    model = theirs()
    with intervene(model, ablate=[(1, 0)], mode="reroute"), capture(model) as recorder:
        out = model.generate(IDS, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert recorder.trace(token_ids=out[:, :-1]).num_tokens == out[:, :-1].numel()
