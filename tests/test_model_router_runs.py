"""Every kind of router from training to use: a run, its checkpoint, its trace, interventions, written text, export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generation_support import generate
from routers_support import (
    CAUSAL,
    CHOOSING,
    EXPERTS,
    cached,
    lone_router,
    model_with,
    route,
    tokens,
)
from training_support import make_config, write_corpus

import main as command_line
from moe_core.config import Config, ModelConfig, validate_config
from moe_core.config.router import ROUTER_FACTS, ROUTER_KINDS, RouterKind
from moe_core.data.prepare import PreparedData, prepare_data
from moe_core.errors import UsageError
from moe_core.evaluation.ablation import ablation_map
from moe_core.evaluation.tasks.catalogue import registered
from moe_core.evaluation.tasks.run import run_suite
from moe_core.exchange.targets import target_family
from moe_core.inference.expert_outputs import expert_saliency
from moe_core.inference.sampling import SamplingConfig
from moe_core.inference.tracing import trace_text
from moe_core.model.experts import Experts
from moe_core.model.experts.dropout import with_dropout
from moe_core.model.routers.hashing import balanced_table
from moe_core.routing import capture, intervene, metrics
from moe_core.routing.measures.health import routing_health
from moe_core.runs.checkpoint import load_run
from moe_core.runs.folder import RunFolder
from moe_core.training.loop import train

GREEDY = SamplingConfig(max_new_tokens=6, temperature=0)
PROMPT = "party shall"  # with what is written it stays within the window of 16 tokens


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("text") / "corpus.jsonl")


def config_of(corpus: Path, kind: str, **router: Any) -> Config:
    wide = {"mean_experts": 2.0} if kind.startswith("expert") else {}
    return make_config(
        corpus, model__router={"kind": kind, **wide, **router}, training__steps=3, training__evaluation_interval=3
    )


@pytest.fixture(scope="module")
def data(corpus: Path) -> PreparedData:
    return prepare_data(config_of(corpus, "softmax"))


@pytest.fixture(scope="module")
def runs(corpus: Path, data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoints folder with a run of three steps of every kind, named by it. Read only."""
    root = tmp_path_factory.mktemp("runs")
    for kind in ROUTER_KINDS:
        train(RunFolder(kind, root), config_of(corpus, kind), data=data)
    return root


@pytest.mark.parametrize("kind", ROUTER_KINDS)
def test_a_run_is_trained_traced_and_written_with(kind: RouterKind, runs: Path, data: PreparedData) -> None:
    loaded = load_run(kind, runs)
    lines = RunFolder(kind, runs).metrics("train")
    assert np.isfinite(lines[["loss", "load_balancing_loss", "router_z_loss", "gradient_norm"]]).to_numpy().all()
    assert loaded.model.config.router.kind == kind

    traced = trace_text(loaded, PROMPT)
    trace = traced.trace
    assert trace.score_function == ("sigmoid" if kind in ("sigmoid", "expert_threshold") else "softmax")
    assert trace.varying_experts == loaded.config.model.varying_experts == ROUTER_FACTS[kind].varying_experts
    balance = metrics.load_balance(trace)
    used = (trace.router_indices >= 0).sum(axis=(1, 2)) / trace.num_tokens
    assert np.allclose(balance["experts_per_token"], used)
    # Slots that the rule left unused are none that were dropped.
    assert balance["dropped_fraction"].isna().all() if trace.varying_experts else (used == trace.top_k).all()
    assert "dropped" not in routing_health(balance)
    ids = torch.from_numpy(trace.token_ids.astype(np.int64))[None]
    with torch.no_grad():
        routed = loaded.model(ids).router_outputs
    assert np.array_equal(trace.router_indices, torch.stack([one.router_indices for one in routed]).numpy())
    assert expert_saliency(loaded, data.unseen[:2])["tokens"].sum() > 0

    if kind == "expert_choice":
        with pytest.raises(UsageError, match="sees the future"):
            generate(loaded, PROMPT, GREEDY)  # at once, before the first token
        found = run_suite(loaded, [registered()[name] for name in ("perplexity", "letter_counting")])
        perplexity, counting = found.tasks
        assert perplexity.note.startswith("Its router lets later tokens decide about earlier ones")
        assert "sees the future" in counting.not_run
        return
    text = list(generate(loaded, PROMPT, GREEDY))
    for token in text:  # read back without a cache: the same likeliest token, by way of the same experts
        with torch.no_grad():
            whole = loaded.model(ids)
        assert int(whole.logits[0, -1].argmax()) == token.token_id
        ids = torch.cat([ids, torch.tensor([[token.token_id]])], dim=1)
        with torch.no_grad():
            routed = loaded.model(ids).router_outputs
        assert token.experts.tolist() == [one.router_indices[-1].tolist() for one in routed]


@pytest.mark.parametrize("kind", ["hash", "document_pool", "expert_choice"])
def test_experts_can_be_switched_off_where_choices_depend_on_more_than_the_token(
    kind: str, runs: Path, data: PreparedData
) -> None:
    loaded = load_run(kind, runs)
    effects = ablation_map(loaded, data.unseen[:2], experts=[0], layers=[0])
    assert effects["affected"].max() > 0
    assert effects["delta_nats"].abs().max() > 0


def test_what_routers_learn_beside_weights_is_in_the_checkpoint(runs: Path, data: PreparedData) -> None:
    state = {kind: load_run(kind, runs, dtype=torch.bfloat16).model.state_dict() for kind in ROUTER_KINDS}
    name = "layers.1.moe.router."
    expected = balanced_table(torch.from_numpy(data.token_counts), 4, 2)
    assert torch.equal(state["hash"][f"{name}table"], expected)  # whole numbers, whatever dtype weights are read in
    assert state["document_pool"][f"{name}document_start"].item() == data.tokenizer.end_of_text
    assert state["expert_threshold"][f"{name}updates"].item() == 3
    assert state["expert_threshold"][f"{name}threshold"].abs().min() > 0
    assert state["sigmoid"][f"{name}expert_bias"].abs().max() > 0
    assert f"{name}noise_weight" in state["noisy"]
    assert f"{name}weight" not in state["hash"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "--run", "expert_choice", "--prompt", "the"], "expert_choice sees the future"),
        (["export", "--run", "hash", "--to", "{to}"], "rule of model.router.kind = hash"),
    ],
)
def test_the_command_line_says_in_one_line_what_a_router_cannot(
    arguments: list[str], words: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("MOESCOPE_CHECKPOINTS", str(runs))
    assert command_line.main([part.format(to=tmp_path / "out") for part in arguments]) != 0
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


EXPORTED = {"softmax": "qwen3_moe", "noisy": "qwen3_moe", "sigmoid": "glm4_moe"}


@pytest.mark.parametrize("kind", ROUTER_KINDS)
def test_only_rules_that_transformers_has_are_exported(kind: str) -> None:
    config = ModelConfig.model_validate({"router": {"kind": kind}})
    if kind in EXPORTED:
        assert target_family(config) == EXPORTED[kind]
    else:
        with pytest.raises(UsageError, match=rf"no architecture.*model\.router\.kind = {kind}.*not be exact"):
            target_family(config)


def test_a_bias_beside_a_softmax_is_not_exported() -> None:
    with pytest.raises(UsageError, match=r"balancing = bias with model\.router\.kind = softmax"):
        target_family(ModelConfig.model_validate({"router": {"balancing": "bias"}}))


@pytest.mark.parametrize("variant", CAUSAL)
@pytest.mark.parametrize("mode", ["zero", "renormalise", "reroute"])
@torch.no_grad()
def test_a_switched_off_expert_gets_no_token(variant: str, mode: Any) -> None:
    model, ids = model_with(variant), tokens()
    if mode == "reroute" and variant not in CHOOSING:
        with pytest.raises(UsageError, match=r"table of token ids, which knows no second choice; use ablate"):
            intervene(model, ablate=[(1, 2)], mode=mode).__enter__()
        return
    before = model(ids).router_outputs[1]
    with intervene(model, ablate=[(1, 2)], mode=mode):
        after = model(ids).router_outputs[1]
        again = cached(model, ids, [5, 1, 10])
    torch.testing.assert_close(again[1][1].flatten(0, 1), after.router_scores, atol=1e-4, rtol=0)
    assert torch.equal(again[2][1].flatten(0, 1), after.router_indices)
    assert (before.router_indices == 2).any()
    assert not (after.router_indices == 2).any()
    assert ((after.router_scores > 0) == (after.router_indices >= 0)).all()
    untouched = ~(before.router_indices == 2).any(dim=1)
    assert torch.equal(after.router_indices[untouched], before.router_indices[untouched])
    if mode == "renormalise":
        has_rest = (after.router_indices >= 0).any(dim=1)
        torch.testing.assert_close(after.router_scores.sum(1)[has_rest], before.router_scores.sum(1)[has_rest])


@pytest.mark.parametrize("variant", CHOOSING)
@torch.no_grad()
def test_a_forced_expert_gets_every_token_with_and_without_a_cache(variant: str) -> None:
    model, ids = model_with(variant), tokens()
    with intervene(model, force=[(1, 4)], temperature=2.0), capture(model) as recorder:
        whole = model(ids)
        traced = recorder.trace(token_ids=ids)
        logits, _, indices = cached(model, ids, [9, 7])
    assert (whole.router_outputs[1].router_indices == 4).any(dim=1).all()
    assert np.array_equal(traced.router_indices[1], whole.router_outputs[1].router_indices.numpy())
    assert torch.equal(indices[1].flatten(0, 1), whole.router_outputs[1].router_indices)
    torch.testing.assert_close(logits, whole.logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_new_choice_stays_in_the_documents_pool() -> None:
    model, ids = model_with("document_pool"), tokens()
    with intervene(model, top_k=EXPERTS):
        routed = model(ids).router_outputs[0]
    pool_TE = route_pool(model, ids)
    for row, pool in zip(routed.router_indices, pool_TE, strict=True):
        assert sorted(row[row >= 0].tolist()) == pool.nonzero().flatten().tolist()  # all 4 of it, and two empty slots


def route_pool(model: Any, ids: torch.Tensor) -> torch.Tensor:
    pool: torch.Tensor = model(ids).router_outputs[0].eligible
    return pool


@torch.no_grad()
def test_experts_that_choose_cannot_be_made_to_choose_again() -> None:
    model = model_with("expert_choice")
    with pytest.raises(UsageError, match=r"experts that choose tokens.*use ablate with mode zero or renormalise"):
        intervene(model, top_k=1).__enter__()
    with intervene(model, ablate=[(0, 1)]):
        assert not (model(tokens()).router_outputs[0].router_indices == 1).any()


# ---- dropout in its three meanings ----


@pytest.mark.parametrize("variant", [*CHOOSING])
def test_expert_dropout_leaves_whole_experts_out_of_a_step(variant: str) -> None:
    torch.manual_seed(0)
    router = lone_router(variant, expert_dropout=0.5)
    logits = torch.randn(300, EXPERTS)
    visited = [set(route(router.train(), logits).router_indices.unique().tolist()) - {-1} for _ in range(40)]
    assert {len(experts) for experts in visited} >= {3, 4}  # top_k = 3 at least
    assert min(map(len, visited)) == 3
    assert set.union(*visited) == set(range(EXPERTS))
    assert len(set(route(router.eval(), logits).router_indices.unique().tolist()) - {-1}) == EXPERTS


def test_expert_output_dropout_takes_single_slots() -> None:
    torch.manual_seed(0)
    router = lone_router("softmax", expert_output_dropout=0.25).train()
    logits = torch.randn(4000, EXPERTS)
    routed, kept = route(router, logits), route(router.eval(), logits)
    gone = routed.router_indices < 0
    assert gone.float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(routed.router_scores[~gone], kept.router_scores[~gone])  # the others keep their weight
    assert (routed.router_scores[gone] == 0).all()
    assert torch.equal(routed.router_indices[~gone], kept.router_indices[~gone])


@pytest.mark.parametrize(
    ("router", "message"),
    [
        ({"kind": "top_p", "balancing": "bias"}, r"balancing = bias needs.*softmax, noisy, sigmoid, not top_p"),
        ({"kind": "hash", "balancing": "layer"}, r"balancing = layer has nothing to act on.*kind = hash"),
        ({"kind": "hash", "expert_dropout": 0.1}, r"expert_dropout = 0\.1 has no meaning.*hash"),
        ({"kind": "expert_choice", "mean_experts": 3}, r"mean_experts = 3 is more than model\.top_k = 2"),
        ({"kind": "document_pool", "pool_size": 1}, r"pool_size = 1 does not fit; expected model\.top_k = 2 to"),
        ({"kind": "switch"}, r"'model\.router\.kind' has value 'switch': .*'document_pool'"),
        ({"balancing": "loss"}, r"'model\.router\.balancing' has value 'loss': .*'cv_squared'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(router: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        validate_config({"model": {"router": router}})
    assert "\n" not in str(caught.value)


def test_dropout_of_hidden_units_keeps_the_mean_and_stops_in_evaluation() -> None:
    torch.manual_seed(0)
    experts = Experts(8, 100, 3, hidden_dropout=0.4)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x_TD, scores_TK, indices_TK = (
        torch.randn(5, 8),
        torch.rand(5, 2),
        torch.tensor([[0, 1], [2, -1], [1, 0], [2, 0], [-1, 1]]),
    )
    exact = experts.eval()(x_TD, scores_TK, indices_TK)
    drawn = torch.stack([experts.train()(x_TD, scores_TK, indices_TK) for _ in range(150)]).detach()
    assert (drawn[0] - drawn[1]).abs().max() > 0.1
    torch.testing.assert_close(drawn.mean(dim=0), exact, atol=5 * drawn.std(dim=0).max().item() / 150**0.5, rtol=0)
    none = Experts(8, 100, 3, hidden_dropout=0.0).train()
    none.load_state_dict(experts.state_dict())
    tiny = with_dropout(x_TD, scores_TK, indices_TK, *experts.parameters(), probability=0.0)
    gradients = [
        torch.autograd.grad(out.square().sum(), owner)
        for out, owner in (
            (none(x_TD, scores_TK, indices_TK), list(none.parameters())),
            (tiny, list(experts.parameters())),
        )
    ]
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-3, rtol=1e-4)
