"""Null experts: choices of the router that compute nothing, from the layer to the figures of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from app_support import Open, shown
from routers_support import BASE, EXPERTS, TOP_K, tokens
from test_model_experts import naive_experts
from training_support import make_config, write_corpus

from moe_core.config import ModelConfig, validate_config
from moe_core.errors import UsageError
from moe_core.evaluation.analysis import analyse_run
from moe_core.evaluation.evaluate import evaluate_run
from moe_core.evaluation.pruning import plan_curves, pruning_curves, rankings_of
from moe_core.evaluation.pruning_text import PruningText, text_of_run
from moe_core.exchange.pruned_run import refuse_router
from moe_core.exchange.targets import target_family
from moe_core.experiments.arms import measured_flops_per_token
from moe_core.inference.named_experts import names_of
from moe_core.inference.open import language_model
from moe_core.inference.tracing import trace_documents
from moe_core.model import KVCache, MoETransformer, size
from moe_core.model.feed_forward import MoE
from moe_core.routing.measures.load import load_balance
from moe_core.routing.measures.pruning import pruning_verdict, top_k_verdict
from moe_core.routing.trace.counting import counts_of
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.routing.trace.trace import RoutingTrace, StoredTrace
from moe_core.runs.checkpoint import load_run
from moe_core.runs.folder import RunFolder
from moe_core.training.loop import train
from moe_core.words import number

NULLS = 4


def config_with(**changes: Any) -> ModelConfig:
    return ModelConfig.model_validate({**BASE, "null_experts": NULLS, **changes})


@pytest.mark.parametrize("output", ["zero", "identity"])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_layer_adds_what_the_chosen_networks_give_and_nothing_or_its_input_for_the_others(
    output: str, kind: str
) -> None:
    torch.manual_seed(0)
    moe = MoE(config_with(null_output=output, router={"kind": kind}))
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x_TD = torch.randn(40, 16).requires_grad_()
    found_TD, routed = moe(x_TD)
    scores_TK, indices_TK = routed.router_scores, routed.router_indices
    assert routed.router_logits.shape == (40, EXPERTS + NULLS)
    null_TK = indices_TK >= EXPERTS
    assert null_TK.any()
    assert not null_TK.all()
    experts = moe.experts
    weights = experts.gate_proj, experts.up_proj, experts.down_proj
    slow_TD = naive_experts(x_TD, scores_TK, indices_TK.masked_fill(null_TK, -1), *weights)
    if output == "identity":
        slow_TD = slow_TD + (scores_TK * null_TK).sum(dim=1, keepdim=True) * x_TD
    torch.testing.assert_close(found_TD, slow_TD, atol=1e-5, rtol=1e-4)
    inputs = [x_TD, *moe.parameters()]
    seed = torch.randn_like(found_TD)
    slow = torch.autograd.grad(slow_TD, inputs, seed, retain_graph=True)
    for fast_gradient, slow_gradient in zip(torch.autograd.grad(found_TD, inputs, seed), slow, strict=True):
        torch.testing.assert_close(fast_gradient, slow_gradient, atol=1e-4, rtol=1e-3)
    with torch.no_grad():
        alone = torch.cat([moe(x_TD[t : t + 1])[0] for t in range(40)])
    torch.testing.assert_close(alone, found_TD, atol=1e-5, rtol=1e-4)


def test_sizes_and_operations_are_those_of_the_real_model() -> None:
    config = config_with()
    model = MoETransformer(config)
    assert model.total_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert config.experts_per_token == TOP_K * EXPERTS / (EXPERTS + NULLS)
    with torch.no_grad():  # no token chooses a null expert, then every token chooses nothing else
        for block in model.layers:
            block.moe.router.weight[EXPERTS:] = 0.0
    every = size.flops_per_token(config, 16, experts=TOP_K)
    none = size.flops_per_token(config, 16, experts=0)
    assert every - none == 3 * 2 * TOP_K * 3 * config.dim * config.expert_hidden_dim
    assert none < measured_flops_per_token(config, 16) < every + 1


@torch.no_grad()
def test_cached_decoding_equals_the_whole_pass() -> None:
    torch.manual_seed(0)
    model = MoETransformer(config_with(null_output="identity")).eval()
    ids = tokens(1, 12)
    whole = model(ids).logits
    cache = KVCache(model.config, 1, 12)
    steps = torch.cat([model(ids[:, t : t + 1], cache=cache).logits for t in range(12)], dim=1)
    torch.testing.assert_close(steps, whole, atol=1e-5, rtol=1e-4)


def test_what_does_not_fit_is_refused_by_name() -> None:
    for changes, said in (
        ({"router": {"kind": "top_p"}}, "model.null_experts = 4 needs a router"),
        ({"null_experts": 0, "null_output": "identity"}, "model.null_output = identity"),
    ):
        with pytest.raises(UsageError, match=said):
            validate_config({"model": {**BASE, "null_experts": NULLS, **changes}})
    for refuse in (target_family, refuse_router):
        with pytest.raises(UsageError, match=r"model\.null_experts = 4"):
            refuse(config_with())
    assert '"null_' not in ModelConfig().model_dump_json()


@pytest.fixture(scope="module")
def skipping(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of 4 experts and 4 null ones, 20 steps."""
    root = tmp_path_factory.mktemp("skipping")
    run = RunFolder("skips", root)
    train(run, make_config(write_corpus(root.parent / "texts.jsonl"), model__null_experts=4))
    return run


def test_a_run_shows_who_skips_and_costs_what_its_tokens_pass(skipping: RunFolder, tmp_path: Path) -> None:
    loaded = load_run("skips", skipping.path.parent)
    model = loaded.config.model
    found = evaluate_run(loaded)
    passed = float(np.mean([layer.experts_per_token for layer in found.routing]))
    assert 0 < passed < model.top_k
    assert found.flops_per_token == size.flops_per_token(model, loaded.config.training.seq_len, passed)
    assert found.flops_per_token < size.flops_per_token(model, loaded.config.training.seq_len, model.top_k)
    trace = trace_documents(loaded, skipping.held_out("unseen")[:4])
    assert (trace.num_experts, trace.null_experts) == (model.num_experts + 4, 4)
    assert (trace.router_indices >= model.num_experts).any()
    for kept in (trace, replace(trace, null_experts=0)):
        kept.save(tmp_path / "kept.parquet")
        read = RoutingTrace.load(tmp_path / "kept.parquet"), StoredTrace.open(tmp_path / "kept.parquet")
        assert [one.null_experts for one in read] == [kept.null_experts] * 2
        counts = counts_of(kept)
        counts.save(tmp_path / "counts.parquet")
        assert RoutingCounts.load(tmp_path / "counts.parquet") == counts
    names, wrong = names_of(skipping)
    assert (names.label(0, model.num_experts), names.label(0, 0), wrong) == ("4 · null", "0", "")


def test_a_null_expert_that_is_switched_off_changes_nothing_and_measures_that_need_weights_pass_it_by(
    skipping: RunFolder,
) -> None:
    found = analyse_run(load_run("skips", skipping.path.parent))
    null = found.effects[(found.effects["expert"] >= 4) & (found.effects["domain"] == "all")]
    assert len(null) == 2 * 4
    assert (null["delta_nats"].abs() < 1e-6).all()
    assert len(found.importance) == 2 * 8


def test_no_order_of_pruning_takes_out_what_computes_nothing(skipping: RunFolder) -> None:
    loaded = load_run("skips", skipping.path.parent)
    text = text_of_run(loaded)
    text = PruningText(text.tuning.select(200, seed=0), text.scored.select(300, seed=0), text.name)
    plan = plan_curves(language_model(loaded), orders=2)
    assert (plan.removed, plan.top_ks) == ((1, 2), tuple(range(1, 9)))
    rankings = rankings_of(language_model(loaded), text.tuning, plan)
    assert {ranking.by for ranking in rankings} == {"reap", "load", "effect", "random"}
    for ranking in rankings:
        assert [sorted(layer.experts) for layer in ranking.layers] == [[0, 1, 2, 3]] * 2
    curves = pruning_curves(loaded, text, plan=plan, rankings=rankings).curves
    assert (curves.num_experts, curves.null_experts) == (4, 4)
    assert pruning_verdict(curves).endswith("The 4 null experts stay, as there is nothing of theirs to take out.")
    assert "of 4 experts and 4 null ones" in top_k_verdict(curves)


@pytest.mark.parametrize("page", ["overview", "experts", "domains", "flow", "tokens", "interventions", "training"])
def test_pages_open_on_such_a_run(page: str, skipping: RunFolder, dashboard: Open) -> None:
    at = dashboard(skipping.path.parent, page, run="skips")
    assert not at.exception
    assert not at.error
    if page == "overview":
        model, context = skipping.config().model, skipping.config().training.seq_len
        passed = float(load_balance(skipping.probe(skipping.probe_steps()[-1]))["experts_per_token"].mean())
        cost = number(size.flops_per_token(model, context, passed) / 1e6)
        assert f"A token passes {number(passed)} of at most {model.top_k} experts in each layer" in shown(at)
        assert f"which makes {cost} million operations forward" in shown(at)
    if page == "experts":
        assert "null" in shown(at)
