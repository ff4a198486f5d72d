"""Steps that an accelerator takes while the host has not read the last ones. The same code runs on a processor: what is
asked of the trainer is how many steps it may leave unread."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from host_reads import HostReads
from torch import Tensor
from training_support import TIMES, begin_trainer, make_config, write_corpus

from moe_core.errors import RunError
from moe_core.runs import RunFolder
from moe_core.runs.checkpoint import checkpoint_steps
from moe_core.training.loop import train
from moe_core.training.step_report import StepReport
from moe_core.training.trainer import Trainer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text.jsonl")


def trainer_ahead(root: Path, corpus: Path, *, reads_every: int = 100, name: str = "one", **changes: Any) -> Trainer:
    trainer = begin_trainer(RunFolder(name, root), make_config(corpus, **changes))
    trainer.reads_every = reads_every
    return trainer


def everything(trainer: Trainer) -> dict[str, Tensor]:
    """Copies of weights, router buffers and optimizer state."""
    found = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    for optimizer in trainer.optimizers:
        for number, state in enumerate(optimizer.state.values()):
            found |= {f"{type(optimizer).__name__}.{number}.{key}": value.clone() for key, value in state.items()}
    return found


def spoil(trainer: Trainer, steps: set[int], where: str) -> None:
    """Make the loss of these steps (counted from 1) infinite, or only gradients NaN."""

    def hook(module: object, arguments: object, output: Tensor) -> Tensor:  # noqa: ARG001
        if trainer.state.step + 1 not in steps:
            return output
        if where == "gradient":
            output.register_hook(lambda gradient: gradient * math.nan)
        return output * math.inf if where == "loss" else output

    trainer.model.norm.register_forward_hook(hook)


STEPS: dict[str, dict[str, Any]] = {
    "muon": {"training__weight_decay": 0.1},
    "adamw": {"training__optimizer": "adamw", "training__weight_decay": 0.1},
    "biased": {"model__router": {"kind": "sigmoid", "expert_dropout": 0.3}, "training__gradient_accumulation": 2},
    "threshold": {"model__router": {"kind": "expert_threshold", "mean_experts": 2.0}, "model__top_k": 3},
    "noisy, capacity": {"model__router": {"kind": "noisy"}, "model__capacity_factor": 1.0},
    "top_p, bfloat16": {"model__router": {"kind": "top_p"}, "training__autocast": "bfloat16"},
    "document_pool": {"model__router": {"kind": "document_pool", "balancing": "global_batch"}},
    "hash": {"model__router": {"kind": "hash"}},
}


@pytest.mark.parametrize("kind", STEPS)
def test_the_host_never_waits_within_a_step(kind: str, corpus: Path, tmp_path: Path) -> None:
    trainer = trainer_ahead(tmp_path, corpus, **STEPS[kind])
    trainer.step()
    with HostReads() as reads:
        trainer.step()
        trainer.step()
    assert reads.waits == []
    assert reads.copies == 2 * 2, "of token ids and targets, and nothing else"
    assert "_grouped_mm" in reads.operations, "experts are visited as on an accelerator"
    with HostReads() as reads:
        trainer.read_steps()
    assert reads.waits == ["tolist"], "one reading for all three"
    lines = trainer.run.metrics("train")
    assert lines["step"].tolist() == [1, 2, 3]
    assert lines["loss"].between(2, 8).all()


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("kind", ["muon", "biased", "threshold"])
def test_a_step_that_is_not_finite_changes_nothing_though_nobody_has_read_it(
    where: str, kind: str, corpus: Path, tmp_path: Path
) -> None:
    trainer = trainer_ahead(tmp_path, corpus, **STEPS[kind])
    spoil(trainer, {3, 4, 6}, where)
    for _ in range(2):
        trainer.step()
    before = everything(trainer)
    with HostReads() as reads:
        reports = [trainer.step() for _ in range(2)]
    assert reads.waits == []
    after = everything(trainer)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    reports += [trainer.step() for _ in range(3)]
    moved = everything(trainer)
    assert any(not torch.equal(after[name], moved[name]) for name in after)
    assert [bool(report.skipped) for report in reports] == [True, True, False, True, False]
    trainer.read_steps()
    assert trainer.run.metrics("train")["step"].tolist() == [1, 2, 5, 7]
    messages = trainer.run.metrics("event")["message"].tolist()
    assert [message.split(":")[0] for message in messages] == [f"step {step} skipped" for step in (3, 4, 6)]
    assert trainer.state.bad_steps == 0


def test_the_first_step_may_be_the_one_that_is_skipped(corpus: Path, tmp_path: Path) -> None:
    trainer = trainer_ahead(tmp_path, corpus)
    spoil(trainer, {1}, "loss")
    start = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.step()
    found = everything(trainer)
    assert all(torch.equal(tensor, found[name]) for name, tensor in start.items())
    assert not any(found[name].any() for name in found.keys() - start.keys()), "no momentum, no step counted"


def test_three_in_a_row_are_noticed_when_they_are_read_whatever_came_after(corpus: Path, tmp_path: Path) -> None:
    trainer = trainer_ahead(tmp_path, corpus, reads_every=10)
    trainer.save()
    spoil(trainer, {4, 5, 6}, "gradient")
    for _ in range(9):
        trainer.step()
    with pytest.raises(RunError, match=r"at step 6: .*nan were not finite 3 times .*checkpoint of step 0 is intact"):
        trainer.step()
    assert trainer.run.metrics("train")["step"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("ask", ["save", "evaluate", "read_steps"])
def test_nothing_is_kept_before_the_steps_are_read(ask: str, corpus: Path, tmp_path: Path) -> None:
    trainer = trainer_ahead(tmp_path, corpus)
    spoil(trainer, {1, 2, 3}, "loss")
    for _ in range(4):
        trainer.step()
    with pytest.raises(RunError, match="at step 3"):
        getattr(trainer, ask)()
    assert checkpoint_steps(trainer.run) == []
    assert trainer.run.metrics("evaluation").empty


def test_steps_ahead_are_those_of_a_trainer_that_reads_each(corpus: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"training__weight_decay": 0.1, "model__router": {"kind": "sigmoid"}}
    ahead = trainer_ahead(tmp_path, corpus, reads_every=4, name="ahead", **changes)
    behind = trainer_ahead(tmp_path, corpus, reads_every=1, name="behind", **changes)
    for trainer in (ahead, behind):
        for _ in range(6):
            trainer.step()
    assert ahead.run.metrics("train")["step"].tolist() == [1, 2, 3, 4]
    ahead.evaluate()
    lines = [trainer.run.metrics("train").drop(columns=list(TIMES)) for trainer in (ahead, behind)]
    pd.testing.assert_frame_equal(*lines, check_exact=False, rtol=1e-5)
    for name, tensor in everything(ahead).items():
        torch.testing.assert_close(tensor, everything(behind)[name], msg=name)


def test_the_loop_logs_every_step_of_a_trainer_that_is_ahead(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(corpus, training__steps=20, training__evaluation_interval=8)
    train(RunFolder("behind", tmp_path), config)
    monkeypatch.setattr(Trainer, "begin", beginning_ahead(Trainer.begin, reads_every=5))
    train(RunFolder("ahead", tmp_path), config)
    # Its last steps before an evaluation or a checkpoint are read for it; in between it reads every five.
    runs = [RunFolder(name, tmp_path) for name in ("ahead", "behind")]
    ahead, behind = (run.metrics("train").drop(columns=list(TIMES)) for run in runs)
    assert ahead["step"].tolist() == list(range(1, 21))
    pd.testing.assert_frame_equal(ahead, behind, check_exact=False, rtol=1e-4)
    kinds = [record["kind"] for record in runs[0].metric_records()]
    lines = [number for number, kind in enumerate(kinds) if kind == "train"]
    evaluations = [number for number, kind in enumerate(kinds) if kind == "evaluation"]
    assert sum(line < evaluations[2] for line in lines) == 8, "what was done before an evaluation stands before it"


def beginning_ahead(begin: Callable[..., Trainer], *, reads_every: int) -> Callable[..., Trainer]:
    def begun(*given: Any) -> Trainer:
        trainer = begin(*given)
        trainer.reads_every = reads_every
        return trainer

    return begun


def test_seconds_of_waiting_are_those_of_the_steps(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_ahead(tmp_path, corpus)
    trainer.step()
    real = StepReport.figures

    def slow(report: StepReport) -> Tensor:
        time.sleep(0.2)
        return real(report)

    monkeypatch.setattr(StepReport, "figures", slow)
    before = trainer.state.clock.step_seconds
    trainer.evaluate()
    assert trainer.state.clock.step_seconds - before >= 0.2
