"""Watching a model that torch.compile compiles, or that single layers of it are; and processes whose counts add up."""

from __future__ import annotations

import logging
import multiprocessing
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from routers_support import model_with, tokens
from test_training_watch import counted
from torch.utils.checkpoint import checkpoint

from moe_core.runs import RunFolder
from moe_core.training import watch

# The compiler looks at the gradients of what a compiled part is given.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
STEPS = 4


@pytest.fixture(autouse=True)
def _reads_as_asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("moe_core.training.watching.READ_SHARE", np.inf)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def theirs() -> Any:
    """A model that the compiler takes whole."""
    pytest.importorskip("transformers", reason="Hugging Face models need requirements-huggingface.txt")
    from huggingface_support import tiny_model

    return tiny_model("qwen3_moe", use_cache=False).train()


def train(model: Any, steps: int = STEPS) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for step in range(steps):
        model(input_ids=tokens(2, 12, step)).logits.logsumexp(dim=-1).mean().backward()
        optimizer.step()


def plainly_counted(folder: Path) -> np.ndarray:
    model = theirs()
    with watch(model, run="plain", root=folder):
        train(model)
    return counted(RunFolder("plain", folder))


def whole(model: Any) -> Any:
    return torch.compile(model, backend="eager", fullgraph=True)


def in_place(model: Any) -> Any:
    model.compile(backend="eager", fullgraph=True)
    return model


def layers(model: Any) -> Any:
    for layer in model.model.layers:
        layer.compile(backend="eager")
    return model


def layers_recomputed(model: Any) -> Any:
    for layer in model.model.layers:
        compiled = torch.compile(layer.forward, backend="eager")

        def again(*args: Any, compiled: Callable[..., Any] = compiled, **kwargs: Any) -> Any:
            return checkpoint(compiled, *args, use_reentrant=False, **kwargs)

        layer.forward = again
    return model


@pytest.mark.parametrize(
    ("compiled", "watched_first"), [(whole, False), (in_place, True), (layers, False), (layers_recomputed, True)]
)
def test_a_compiled_model_is_counted_as_the_same_uncompiled(
    compiled: Callable[[Any], Any], watched_first: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = theirs()
    called = model if watched_first else compiled(model)
    with caplog.at_level(logging.WARNING, "moe_core"), watch(model, run="compiled", root=tmp_path):
        called = compiled(model) if watched_first else called
        train(called)
        with torch.no_grad():
            called(input_ids=tokens(2, 12))
    assert [record.message for record in caplog.records if record.name.startswith("moe_core")] == []
    assert np.array_equal(counted(RunFolder("compiled", tmp_path)), plainly_counted(tmp_path))


def test_what_was_compiled_before_and_stays_silent_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = theirs()
    called = whole(model)
    train(called, 1)
    with caplog.at_level(logging.WARNING, "moe_core"), watch(model, run="mine", every=2, root=tmp_path):
        train(called)
    assert "router 'model.layers.1.mlp.gate' of qwen3_moe stayed silent up to step 2 (2 of 2 did)" in caplog.text
    run = RunFolder("mine", tmp_path)
    assert "torch.compiler.reset()" in run.metric_records("event")[0]["message"]
    assert run.metric_records("load") == []
    torch.compiler.reset()
    with watch(called, run="again", every=2, root=tmp_path):
        train(called)
    assert counted(RunFolder("again", tmp_path)).sum() == STEPS * 24 * 2 * 2


def a_rank(rank: int, port: int, folder: str) -> None:
    """One of two processes: each trains on text of its own, then once more with one that cannot go on."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    model = model_with("softmax").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for run in ("both", "one fails"):
        with watch(model, run=run.replace(" ", "-"), every=3, root=folder) as log:
            for step in range(7):
                model(tokens(2, 12, 100 * step + 10 * rank)).logits.float().logsumexp(dim=-1).mean().backward()
                if run == "one fails" and rank == 1 and step == 3:
                    log._counter.fault = ValueError("a strange router")
                optimizer.step()
    torch.distributed.destroy_process_group()


def test_counts_of_two_processes_add_up_and_one_that_cannot_go_on_keeps_nobody_waiting(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start = multiprocessing.get_context("spawn").Process
    processes = [start(target=a_rank, args=(rank, port, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        assert process.exitcode == 0
    both, failed = RunFolder("both", tmp_path), RunFolder("one-fails", tmp_path)
    status, watched = both.status(), both.watched()
    assert status is not None
    assert watched is not None
    assert (watched.ranks, status.state, status.tokens) == (2, "finished", 7 * 2 * 24)
    model = model_with("softmax").train()
    with watch(model, run="alone", every=3, root=tmp_path, by_hand=True) as log:
        for step in range(7):
            for rank in range(2):
                model(tokens(2, 12, 100 * step + 10 * rank))
            log.step()
    assert np.array_equal(counted(both), counted(RunFolder("alone", tmp_path)))
    status = failed.status()
    assert status is not None
    assert status.state == "failed"
    assert "another process" in status.message
    assert {line["step"] for line in failed.metric_records("load")} <= {3}
