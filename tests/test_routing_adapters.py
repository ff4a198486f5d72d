"""Adapters wrap routers and experts: there is still one router a layer, and it is captured as the merged model's."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from routers_support import model_with, tokens
from torch import nn

pytest.importorskip("transformers", reason="Hugging Face models need requirements-huggingface.txt")
peft = pytest.importorskip("peft", reason="adapters need peft (requirements-dev.txt)")

from bench.family_configs import tiny_model  # noqa: E402
from moe_core.errors import TraceError  # noqa: E402
from moe_core.routing import RoutingTrace, capture, intervene  # noqa: E402
from moe_core.routing.instruments.find import find_routers  # noqa: E402

IDS = torch.arange(5, 25).view(2, 10)
GATE = {"qwen3_moe": "mlp.gate", "mixtral": "mlp.gate", "gpt_oss": "mlp.router", "deepseek_v3": "mlp.gate"}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def adapted(model: Any, **config: Any) -> Any:
    """A random adapter that is large enough to move choices."""
    torch.manual_seed(1)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 16, "init_lora_weights": False, "target_modules": [], **config}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft advises about targets and versions
        return peft.get_peft_model(model, peft.LoraConfig(**settings)).eval()


def merged(model: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return copy.deepcopy(model).merge_and_unload().eval()


def traced(model: Any, **change: Any) -> RoutingTrace:
    with torch.no_grad(), capture(model) as recorder:
        if change:
            with intervene(model, **change):
                model(input_ids=IDS)
        else:
            model(input_ids=IDS)
    return recorder.trace(token_ids=IDS)


def assert_same(found: RoutingTrace, expected: RoutingTrace) -> None:
    assert found.layers == expected.layers
    assert np.array_equal(found.router_indices, expected.router_indices)
    assert np.allclose(found.router_scores, expected.router_scores, atol=1e-4)


TARGETS: list[dict[str, Any]] = [
    {"target_parameters": ["{gate}.weight"]},
    {"target_parameters": EXPERTS},
    {"target_parameters": ["{gate}.weight", *EXPERTS]},
    {"target_modules": ["q_proj", "o_proj"]},
    {"target_modules": ["o_proj"], "target_parameters": ["{gate}.weight", *EXPERTS]},
]


def targets_of(family: str, config: dict[str, Any]) -> dict[str, Any]:
    return {key: [name.format(gate=GATE[family]) for name in names] for key, names in config.items()}


@pytest.mark.parametrize("config", TARGETS, ids=str)
@pytest.mark.parametrize("family", GATE)
def test_the_choices_are_those_of_the_merged_model(family: str, config: dict[str, Any]) -> None:
    plain = traced(tiny_model(family))
    config = targets_of(family, config)
    if family == "deepseek_v3" and "target_modules" in config:
        config["target_modules"] = ["o_proj"]
    model = adapted(tiny_model(family), **config)
    found = traced(model)
    assert_same(found, traced(merged(model)))
    assert not np.array_equal(found.router_scores, plain.router_scores), "the adapter acts"
    with model.disable_adapter():
        assert_same(traced(model), plain)
    assert_same(traced(model), found)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_interventions_act_on_what_the_adapter_made_of_the_router(family: str) -> None:
    model = adapted(tiny_model(family), target_parameters=[f"{GATE[family]}.weight", *EXPERTS])
    one = merged(model)
    busiest = int(np.bincount(traced(one).router_indices[1].ravel()).argmax())
    for change in (
        {"ablate": [(1, busiest)]},
        {"ablate": [(1, busiest)], "mode": "renormalise"},
        {"ablate": [(1, busiest)], "mode": "reroute"},
        {"force": [(0, busiest)]},
        {"top_k": 3},
        {"temperature": 0.5},
    ):
        assert_same(traced(model, **change), traced(one, **change))
    assert_same(traced(model), traced(one))
    with torch.no_grad():
        outputs = []
        for each in (model, one):
            with intervene(each, ablate=[(0, busiest)], mode="reroute"):
                outputs.append(each(input_ids=IDS).logits)
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-4, rtol=1e-4)


def test_the_active_one_of_several_adapters_is_read() -> None:
    config: dict[str, Any] = {"target_parameters": ["mlp.gate.weight"], "target_modules": []}
    model = adapted(tiny_model("qwen3_moe"), **config)
    torch.manual_seed(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.add_adapter("other", peft.LoraConfig(r=4, lora_alpha=16, init_lora_weights=False, **config))
        first = traced(model)
        model.set_adapter("other")
        second = traced(model)
        assert_same(second, traced(merged(model)))
        model.set_adapter("default")
    assert_same(traced(model), first)
    assert not np.array_equal(first.router_scores, second.router_scores)


def test_a_router_that_is_trained_as_a_whole_copy_is_read_where_it_runs() -> None:
    plain = tiny_model("qwen3_moe")
    expected = traced(plain)
    model = adapted(plain, target_modules=["q_proj"], modules_to_save=["gate"], init_lora_weights=True)
    assert_same(traced(model), expected)
    for router in find_routers(model).values():
        assert ".modules_to_save.default" in router.name
        nn.init.normal_(router.module.weight, std=0.5)  # type: ignore[arg-type]
    found = traced(model)
    assert not np.array_equal(found.router_indices, expected.router_indices)
    assert_same(found, traced(merged(model)))
    with model.disable_adapter():
        assert_same(traced(model), expected)
    busiest = int(np.bincount(found.router_indices[0].ravel()).argmax())
    assert not (traced(model, ablate=[(0, busiest)], mode="reroute").router_indices[0] == busiest).any()
    with torch.no_grad(), capture(model) as recorder, model.disable_adapter():  # another router runs than was found
        model(input_ids=IDS)
    with pytest.raises(TraceError, match="stayed silent"):
        recorder.trace(token_ids=IDS)


@pytest.mark.parametrize("variant", ["softmax", "sigmoid", "document_pool"])
def test_our_own_models_take_adapters_too(variant: str) -> None:
    ids = tokens()

    def routed(model: Any, **change: Any) -> RoutingTrace:
        with torch.no_grad(), capture(model) as recorder, intervene(model, **change):
            model(ids)
        return recorder.trace(token_ids=ids)

    for targets in (["moe.router.weight"], ["moe.experts.gate_proj", "moe.experts.down_proj"]):
        model = model_with(variant)
        torch.manual_seed(1)
        config = peft.LoraConfig(
            r=4, lora_alpha=8, init_lora_weights=False, target_modules=[], target_parameters=targets
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peft.inject_adapter_in_model(config, model)
        one = copy.deepcopy(model)
        for part in list(one.modules()):
            if hasattr(part, "merge"):
                part.merge()  # type: ignore[operator]
        assert not np.array_equal(routed(model).router_scores, routed(model_with(variant)).router_scores)
        assert_same(routed(model), routed(one))
        for change in ({"ablate": [(1, 2)], "mode": "reroute"}, {"ablate": [(1, 2)]}, {"top_k": 1}):
            assert_same(routed(model, **change), routed(one, **change))
        assert all(router.experts is not None for router in find_routers(model).values())


def test_other_wrappers_hide_no_router_either() -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self._checkpoint_wrapped_module = inner

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self._checkpoint_wrapped_module(*args, **kwargs)

    model = tiny_model("qwen3_moe")
    expected = traced(model)
    for layer in model.model.layers:  # type: ignore[union-attr]
        layer.mlp.gate = Wrapper(layer.mlp.gate)  # type: ignore[union-attr]
        layer.mlp.experts = Wrapper(Wrapper(layer.mlp.experts))  # type: ignore[union-attr]
    model.model.layers[1].mlp = Wrapper(model.model.layers[1].mlp)  # type: ignore[union-attr, index]
    assert_same(traced(model), expected)
    busiest = int(np.bincount(expected.router_indices[1].ravel()).argmax())
    assert not (traced(model, ablate=[(1, busiest)], mode="reroute").router_indices[1] == busiest).any()
