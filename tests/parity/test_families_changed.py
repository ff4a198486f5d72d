"""Interventions on every family: what they leave alone, and what the family's own router chooses in their place.

The references are the family's own code in another way: half the router's weights instead of temperature 2, another
top_k set on the module, the best of the other experts by the logits it reports.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers", reason="Hugging Face models need requirements-huggingface.txt")

from bench.family_configs import VOCABULARY, families, tiny_model  # noqa: E402
from moe_core.errors import UsageError  # noqa: E402
from moe_core.routing import (  # noqa: E402
    RoutingTrace,
    capture,
    intervene,
)
from moe_core.routing.instruments.contract import Router  # noqa: E402
from moe_core.routing.instruments.find import find_routers  # noqa: E402

pytestmark = pytest.mark.xdist_group("families")

UNCHANGEABLE = {"doge"}
ONLY_OFF = {"inkling", "switch_transformers", "zaya"}
MOE = [family for family in families() if family not in {"gemma4_unified", "granite_docling", "nllb_moe"}]
CHANGEABLE = [family for family in MOE if family not in UNCHANGEABLE]
FULL = [family for family in CHANGEABLE if family not in ONLY_OFF]
TOKENS = torch.randint(3, VOCABULARY - 9, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> None:
    transformers.logging.set_verbosity_error()


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> Any:
    """The tiny model of the family that a test is parametrized with; tests of one family follow each other."""
    return tiny_model(request.param)


def family_of(model: Any) -> str:
    return str(type(model).__module__.split(".")[-2])


def of_each(names: list[str]) -> Any:
    return pytest.mark.parametrize("model", names, indirect=True, scope="module")


def read(model: Any, **change: Any) -> RoutingTrace:
    with torch.no_grad(), capture(model) as recorder, intervene(model, **change):
        model(input_ids=TOKENS)
    assert not [module for module in model.modules() if module._forward_pre_hooks]
    return recorder.trace(token_ids=TOKENS)


def first_experts_output(model: Any, router: Router, **change: Any) -> tuple[RoutingTrace, Tensor]:
    """[T, D] of the first layer's experts."""
    outputs: list[Tensor] = []
    block: Any = router.block
    part = block.experts if hasattr(block, "experts") and type(block.experts).__name__ != "Llama4TextExperts" else block
    handle = part.register_forward_hook(
        lambda _module, _args, output: outputs.append(output[0] if isinstance(output, tuple) else output)
    )
    trace = read(model, **change)
    handle.remove()
    return trace, outputs[0].reshape(len(trace.token_ids), -1)


def some_expert(indices_TK: Any) -> int:
    """One that some tokens chose and others did not."""
    counts = np.bincount(indices_TK[indices_TK >= 0], minlength=2)
    return int(np.argmin(np.abs(counts - len(indices_TK) / 2)))


# gemma4 scales each expert's weight besides, phimoe leaves out what falls far behind, zaya has a class for no expert.
@of_each([family for family in MOE if family not in {"diffusion_gemma", "gemma4", "phimoe", "zaya"}])
def test_weights_are_the_named_function_of_the_logits(model: Any) -> None:
    trace = read(model)
    assert trace.router_logits is not None
    chosen = np.take_along_axis(trace.router_logits.astype(np.float64), trace.router_indices.clip(0), axis=2)
    if trace.score_function == "softmax":
        expected = np.exp(chosen - chosen.max(axis=2, keepdims=True))
    elif trace.score_function == "sigmoid":
        expected = 1 / (1 + np.exp(-chosen))
    else:
        expected = np.sqrt(np.log1p(np.exp(chosen)))
    shares = [values / values.sum(axis=2, keepdims=True) for values in (expected, trace.router_scores)]
    routed = (trace.router_indices >= 0).all(axis=2)
    assert np.allclose(shares[0][routed], shares[1][routed], atol=5e-3)  # logits are kept as float16


@of_each(CHANGEABLE)
def test_an_expert_switched_off_is_missed_by_its_tokens_alone(model: Any) -> None:
    layer, router = next(iter(find_routers(model).items()))
    plain, before = first_experts_output(model, router)
    expert = some_expert(plain.router_indices[0])
    concerned = (plain.router_indices[0] == expert).any(axis=1)
    assert 0 < concerned.sum() < len(concerned)
    for mode in ("zero", "renormalise"):
        changed, after = first_experts_output(model, router, ablate=[(layer, expert)], mode=mode)
        slots = plain.router_indices[0] == expert
        assert np.array_equal(changed.router_indices[0], np.where(slots, -1, plain.router_indices[0]))
        assert (changed.router_scores[0][slots] == 0).all()
        assert np.array_equal(changed.router_scores[0][~concerned], plain.router_scores[0][~concerned])
        assert torch.equal(after[~torch.from_numpy(concerned)], before[~torch.from_numpy(concerned)])
        moved = (after != before).any(dim=1).numpy()
        alone = mode == "renormalise" and plain.top_k > 1
        assert (moved == concerned).all() if not alone else (moved <= concerned).all()
        if alone:
            left = changed.router_scores[0].sum(axis=1)
            assert np.allclose(left, plain.router_scores[0].sum(axis=1), rtol=1e-3)
    assert np.array_equal(read(model).router_indices, plain.router_indices)


@of_each(FULL)
def test_tokens_of_an_absent_expert_choose_the_next_best_by_the_familys_rule(model: Any) -> None:
    layer, router = list(find_routers(model).items())[-1]
    plain = read(model)
    expert = some_expert(plain.router_indices[-1])
    concerned = (plain.router_indices[-1] == expert).any(axis=1)
    changed = read(model, ablate=[(layer, expert)], mode="reroute")
    assert np.array_equal(changed.router_indices[:-1], plain.router_indices[:-1])
    assert np.array_equal(changed.router_indices[-1][~concerned], plain.router_indices[-1][~concerned])
    assert np.array_equal(changed.router_scores[-1][~concerned], plain.router_scores[-1][~concerned])
    best = np.argsort(-without(plain, router, expert), axis=1)[:, : plain.top_k]
    assert np.array_equal(np.sort(changed.router_indices[-1][concerned], axis=1), np.sort(best[concerned], axis=1))
    assert (changed.router_scores[-1][concerned] != 0).all()


def without(trace: RoutingTrace, router: Router, expert: int) -> Any:
    """[T, E] by what the last layer's experts are chosen if one of them is not there: -inf."""
    assert trace.router_logits is not None
    logits = torch.from_numpy(trace.router_logits[-1].astype(np.float32))
    logits[:, expert] = -torch.inf
    block: Any = router.block
    named = dict([*block.named_buffers(), *block.named_parameters()])
    biases = [
        bias.detach().flatten() for name, bias in named.items() if name.endswith(("correction_bias", "expert_bias"))
    ]
    if trace.score_function == "softmax":
        scores = logits.softmax(dim=-1)
    elif trace.score_function == "sqrtsoftplus":
        scores = torch.nn.functional.softplus(logits).sqrt()
    else:
        scores = logits if router.family == "kolibri1" else logits.sigmoid()
    scores = scores + sum(biases)
    scores[:, expert] = -torch.inf
    return scores.numpy()


@of_each(FULL)
def test_a_forced_expert_is_visited_by_all(model: Any) -> None:
    layer = list(find_routers(model))[-1]
    plain = read(model)
    expert = some_expert(plain.router_indices[-1])
    changed = read(model, force=[(layer, expert)])
    assert (changed.router_indices[-1] == expert).any(axis=1).all()
    assert changed.top_k == plain.top_k
    assert np.array_equal(changed.router_indices[:-1], plain.router_indices[:-1])


# laguna caps its logits, so that they are not linear; the first layer of deepseek_v4 does not choose.
@of_each([family for family in FULL if family not in {"laguna", "deepseek_v4"}])
def test_temperature_2_is_half_the_routers_weights(model: Any) -> None:
    family = family_of(model)
    halved = copy.deepcopy(model)
    for router in find_routers(halved).values():
        module: Any = router.block.router if family == "dbrx" else router.module  # type: ignore[union-attr]
        for name, weight in module.named_parameters():
            if (weight.dim() == 2 and "correction" not in name) or name == "bias":
                weight.data.mul_(0.5)
    changed, expected = read(model, temperature=2.0), read(halved)
    assert np.array_equal(changed.router_indices, expected.router_indices)
    assert np.allclose(changed.router_scores, expected.router_scores, atol=1e-5)
    if "gemma" not in family:  # their routers report probabilities: logits are their logarithms, rounded
        assert np.array_equal(changed.router_scores[0], expected.router_scores[0])


@of_each(FULL)
def test_another_top_k_is_what_the_module_does_with_it(model: Any) -> None:
    family = family_of(model)
    if family == "deepseek_v4":
        with pytest.raises(UsageError, match="looks its experts up by the token"):
            read(model, top_k=1)
        return
    # The experts of longcat_flash cannot take one column.
    for top_k in (3,) if family == "longcat_flash" else (1, 3):
        other = copy.deepcopy(model)
        for router in find_routers(other).values():
            holder: Any = router.block if family == "dbrx" else router.module
            if hasattr(holder, "top_k"):
                holder.top_k = top_k
            else:
                holder.config.top_k_experts = top_k
        if family == "phimoe":
            with pytest.raises(UsageError, match=f"does not choose {top_k} experts a token, although told to"):
                read(model, top_k=top_k)
            continue
        changed, expected = read(model, top_k=top_k), read(other)
        assert changed.top_k == top_k
        assert np.array_equal(changed.router_indices, expected.router_indices)
        assert np.array_equal(changed.router_scores[0], expected.router_scores[0])
        assert np.allclose(changed.router_scores, expected.router_scores, atol=1e-5)


@of_each(sorted(ONLY_OFF | UNCHANGEABLE))
def test_what_cannot_be_exact_is_refused_by_name(model: Any) -> None:
    family = family_of(model)
    layer = next(iter(find_routers(model)))
    for change in ({"temperature": 2.0}, {"force": [(layer, 0)]}, {"ablate": [(layer, 0)], "mode": "reroute"}):
        with pytest.raises(UsageError, match=rf"router '.*' of {family.split('_')[0]}.*") as refusal:
            read(model, **change)
        assert "\n" not in str(refusal.value)
