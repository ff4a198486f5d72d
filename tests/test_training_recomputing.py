"""Activation checkpointing: less memory, more time, and otherwise the same training to the bit."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_support import begin_trainer, make_config, timeless_metrics, write_corpus

from moe_core.config.router import ROUTER_KINDS
from moe_core.routing import capture
from moe_core.routing.trace.trace import RoutingTrace
from moe_core.runs import RunFolder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text.jsonl")


DROPPING: dict[str, Any] = {"expert_dropout": 0.3}
KINDS: dict[str, dict[str, Any]] = {
    **{kind: {"model__router": {"kind": kind, "mean_experts": 1.5}} for kind in ROUTER_KINDS},
    "noise, dropout, capacity, parts": {
        "model__router": {"noise_std": 0.5, "balancing": "global_batch", **DROPPING},
        "model__capacity_factor": 1.0,
        "model__expert_hidden_dropout": 0.2,
        "training__gradient_accumulation": 2,
    },
    "bfloat16, a dense layer, adamw": {
        "training__autocast": "bfloat16",
        "model__first_dense_layers": 1,
        "training__optimizer": "adamw",
    },
}
STEPS = 4


def training(kind: str, recompute: bool, corpus: Path, root: Path) -> tuple[str, list[dict[str, Any]], RoutingTrace]:
    """Hash of weights, buffers, optimizer state and random numbers after STEPS steps; the log; what was captured."""
    config = make_config(corpus, training__activation_checkpointing=recompute, **KINDS[kind])
    run = RunFolder(f"recompute-{recompute}", root)
    trainer = begin_trainer(run, config)
    with capture(trainer.model) as recorder:
        for _ in range(STEPS):
            trainer.step()
    trainer.evaluate()
    digest = hashlib.sha256(torch.get_rng_state().numpy().tobytes())
    for tensor in trainer.model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    for optimizer in trainer.optimizers:
        for state in optimizer.state.values():
            for tensor in state.values():
                digest.update(tensor.numpy().tobytes())
    return digest.hexdigest(), timeless_metrics(run), recorder.trace(token_ids=np.zeros(STEPS * 64, int))


@pytest.mark.parametrize("kind", KINDS)
def test_the_training_is_the_same_to_the_bit_and_each_token_is_seen_once(
    kind: str, corpus: Path, tmp_path: Path
) -> None:
    plain, metrics, trace = training(kind, False, corpus, tmp_path)
    recomputed, metrics_again, trace_again = training(kind, True, corpus, tmp_path)
    assert recomputed == plain
    assert metrics_again == metrics
    assert trace_again.num_tokens == trace.num_tokens == STEPS * 4 * 16
    assert np.array_equal(trace_again.router_indices, trace.router_indices)


def test_blocks_are_computed_again_in_the_backward_pass_alone(corpus: Path, tmp_path: Path) -> None:
    config = make_config(corpus, training__activation_checkpointing=True)
    trainer = begin_trainer(RunFolder("one", tmp_path), config)
    calls: list[bool] = []
    norm = trainer.model.layers[0].attention_norm
    norm.register_forward_hook(lambda *_: calls.append(torch._C._current_graph_task_id() != -1))
    trainer.step()
    assert calls == [False, True], "once forward, once for the gradient"
    trainer.evaluate()
    assert True not in calls[2:], "an evaluation computes nothing twice"


def test_old_runs_keep_their_configuration_as_it_was_saved(corpus: Path) -> None:
    config = make_config(corpus)
    assert "activation_checkpointing" not in config.model_dump_json()
    on = make_config(corpus, training__activation_checkpointing="true")
    assert '"activation_checkpointing":true' in on.model_dump_json()
