"""float16 with loss scaling: it learns as float32 does, the scale follows overflow, and a resume knows the scale."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from host_reads import HostReads
from torch import Tensor
from training_support import begin_trainer, make_config, saved_and_restored, tensor_hashes, write_corpus

from moe_core.errors import RunError, UsageError
from moe_core.runs import RunFolder
from moe_core.runs.checkpoint import load_trainer_state
from moe_core.training.compiling import can_compile
from moe_core.training.loop import train
from moe_core.training.loss_scaling import SCALE, TRACKER
from moe_core.training.repeatability import resolve_autocast
from moe_core.training.trainer import Trainer

FIRST_SCALE = 65536.0


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text.jsonl")


def halves(corpus: Path, root: Path, **changes: Any) -> Trainer:
    return begin_trainer(RunFolder("one", root), make_config(corpus, training__autocast="float16", **changes))


def overflow(trainer: Trainer, above: float) -> None:
    """Let every gradient that was scaled by more than `above` overflow, as a large one would."""

    def hook(module: torch.nn.Module, arguments: object, output: Tensor) -> None:  # noqa: ARG001
        if module.training:
            scale = trainer._scaling.scale
            output.register_hook(lambda gradient: torch.where(scale > above, gradient * math.inf, gradient))

    trainer.model.norm.register_forward_hook(hook)


def take_steps(trainer: Trainer, steps: int) -> None:
    for _ in range(steps):
        trainer.step()


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_it_learns_what_float32_learns(optimizer: str, corpus: Path, tmp_path: Path) -> None:
    nats = []
    for autocast in ("none", "float16"):
        config = make_config(
            corpus, training__autocast=autocast, training__steps=30, training__optimizer=optimizer,
            training__evaluation_interval=30, training__gradient_accumulation=2,
        )  # fmt: skip
        nats.append(train(RunFolder(autocast, tmp_path), config).validation_nats)
    assert nats[0] is not None
    assert nats[1] == pytest.approx(nats[0], abs=0.01)
    assert nats[1] != nats[0]


@pytest.mark.parametrize("reads_every", [1, 100])
def test_a_step_that_overflows_halves_the_scale_and_is_no_bad_one(
    reads_every: int, corpus: Path, tmp_path: Path
) -> None:
    trainer = halves(corpus, tmp_path)
    trainer.reads_every = reads_every
    overflow(trainer, FIRST_SCALE / 2**5)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    skipped = [bool(trainer.step().skipped) for _ in range(5)]
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())
    skipped += [bool(trainer.step().skipped) for _ in range(2)]
    trainer.read_steps()
    assert skipped == [True] * 5 + [False] * 2, "more in a row than bad steps may be"
    assert trainer.state.bad_steps == 0
    events = [record["message"] for record in trainer.run.metric_records("event")]
    assert events[0] == ("step 1 skipped: its gradient overflowed float16; the loss scale falls from 65536 to 32768")
    assert len(events) == 5
    assert trainer._scaling.scale == FIRST_SCALE / 2**5
    norms = [record["gradient_norm"] for record in trainer.run.metric_records("train")]
    assert all(0.01 < norm < 100 for norm in norms), "without the scale"


def test_at_the_least_scale_and_where_the_loss_itself_is_not_finite_it_is_a_bad_step(
    corpus: Path, tmp_path: Path
) -> None:
    trainer = halves(corpus, tmp_path / "least")
    overflow(trainer, 0.5)
    with pytest.raises(RunError, match=r"step 19.*3 times in a row"):  # 2**16 to 1, and three more
        take_steps(trainer, 30)
    assert trainer._scaling.scale == 1.0
    trainer = halves(corpus, tmp_path / "loss")
    trainer.model.norm.register_forward_hook(lambda *found: found[-1] * math.nan)
    with pytest.raises(RunError, match=r"step 3.*3 times in a row"):
        take_steps(trainer, 30)


def test_stopped_and_resumed_equals_never_stopped(corpus: Path, tmp_path: Path) -> None:
    hashes = []
    for stops in ((), (2, 5)):
        trainer = halves(corpus, tmp_path / str(len(stops)), training__gradient_clip_percentile=50)
        overflow(trainer, FIRST_SCALE / 8)
        for step in range(7):
            if step in stops:
                trainer = saved_and_restored(trainer)
                overflow(trainer, FIRST_SCALE / 8)
            trainer.step()
        trainer.save()
        tensors, _ = load_trainer_state(trainer.run)
        assert (tensors[SCALE].item(), tensors[TRACKER].item()) == (FIRST_SCALE / 8, 4)
        hashes.append(tensor_hashes(trainer.run))
    assert hashes[1] == hashes[0]


def test_the_host_does_not_wait_for_the_scale(corpus: Path, tmp_path: Path) -> None:
    trainer = halves(corpus, tmp_path)
    trainer.reads_every = 100
    trainer.step()
    with HostReads() as reads:
        trainer.step()
    assert reads.waits == []


def test_where_it_was_not_tried_it_is_refused_and_nothing_is_compiled(corpus: Path) -> None:
    config = make_config(corpus, training__autocast="float16")
    assert resolve_autocast(config, torch.device("cuda")) is True
    with pytest.raises(UsageError, match="float16 was not tried on mps"):
        resolve_autocast(config, torch.device("mps"))
    assert not can_compile(config, torch.device("cuda"), autocast=True)
