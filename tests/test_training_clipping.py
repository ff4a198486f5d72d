"""Clipping to a percentile of past norms (AutoClip): what the limit is, what it forgets, and that a resume knows it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from host_reads import HostReads
from torch import nn
from training_support import begin_trainer, make_config, saved_and_restored, tensor_hashes, write_corpus

from moe_core.config import TrainingConfig
from moe_core.errors import UsageError
from moe_core.runs import RunFolder
from moe_core.runs.checkpoint import load_trainer_state
from moe_core.training.clipping import HISTORY, Clipping

CPU = torch.device("cpu")
FINE = torch.tensor(1.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text.jsonl")


def with_gradient(length: float) -> nn.Parameter:
    """A parameter whose gradient is that long."""
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([0.6 * length, -0.8 * length])
    return parameter


@pytest.mark.parametrize("percentile", [10.0, 50.0, 100.0])
def test_the_limit_is_the_percentile_of_all_norms_so_far(percentile: float) -> None:
    clipping = Clipping(TrainingConfig(gradient_clip_percentile=percentile), CPU)
    norms = (
        np.random.default_rng(0).lognormal(0.0, 1.5, 1500).astype(np.float32)
    )  # more than there is room for at first
    for step, norm in enumerate(norms, start=1):
        parameter = with_gradient(float(norm))
        assert clipping.clip([parameter], FINE).item() == pytest.approx(norm)
        assert parameter.grad is not None
        limit = np.percentile(norms[:step].astype(float), percentile)
        assert parameter.grad.norm().item() == pytest.approx(min(norm, limit), rel=1e-4), step


@pytest.mark.parametrize("bad", [(math.nan, 1.0), (math.inf, 1.0), (5.0, math.nan), (5.0, math.inf)])
def test_a_step_that_is_skipped_leaves_no_norm(bad: tuple[float, float]) -> None:
    clipping = Clipping(TrainingConfig(gradient_clip_percentile=100), CPU)
    for norm, loss in ((2.0, 1.0), bad, (3.0, 1.0), (10.0, 1.0)):
        clipping.clip([with_gradient(norm)], torch.tensor(loss))
    past = clipping.tensors()[HISTORY]
    assert past.isnan().tolist() == [False, True, False, False]
    low = Clipping(TrainingConfig(gradient_clip_percentile=1e-6), CPU)
    low.restore({HISTORY: past})
    parameter = with_gradient(7.0)
    low.clip([parameter], FINE)
    assert parameter.grad is not None
    assert parameter.grad.norm().item() == pytest.approx(2.0, rel=1e-4), "the least norm that counted"


def test_without_a_percentile_it_is_torch_own_and_remembers_nothing() -> None:
    clipping = Clipping(TrainingConfig(gradient_clip=0.5), CPU)
    one, other = with_gradient(3.0), with_gradient(3.0)
    assert clipping.clip([one], FINE) == nn.utils.clip_grad_norm_([other], 0.5)
    assert one.grad is not None
    assert torch.equal(one.grad, other.grad if other.grad is not None else one)
    assert clipping.tensors() == {}


def test_the_host_does_not_wait_for_the_limit() -> None:
    clipping = Clipping(TrainingConfig(gradient_clip_percentile=10), CPU)
    clipping.clip([with_gradient(1.0)], FINE)
    with HostReads() as reads:
        clipping.clip([with_gradient(3.0)], FINE)
    assert reads.waits == []


def test_stopped_and_resumed_equals_never_stopped_with_a_bad_step_between(corpus: Path, tmp_path: Path) -> None:
    config = make_config(corpus, training__gradient_clip_percentile=20)
    digests = []
    for stops in ((), (4, 6)):
        trainer = begin_trainer(RunFolder("one", tmp_path / str(len(stops))), config)
        for step in range(9):
            if step in stops:
                trainer = saved_and_restored(trainer)
            if step == 3:
                handle = trainer.model.norm.register_forward_hook(lambda *found: found[-1] * math.nan)
            trainer.step()
            if step == 3:
                handle.remove()
        trainer.save()
        digests.append(tensor_hashes(trainer.run))
        past = load_trainer_state(trainer.run)[0][HISTORY]
        assert past.isnan().nonzero().flatten().tolist() == [3]
        assert len(past) == 9
    assert digests[1] == digests[0]


def test_old_configurations_stay_and_wrong_ones_are_refused(corpus: Path, tmp_path: Path) -> None:
    assert "gradient_clip_percentile" not in make_config(corpus).model_dump_json()
    for value in (0, 100.5, "nan"):
        with pytest.raises(UsageError, match="gradient_clip_percentile"):
            make_config(corpus, training__gradient_clip_percentile=value)
    trainer = begin_trainer(RunFolder("x", tmp_path), make_config(corpus, training__gradient_clip_percentile=1))
    first, second = trainer.step(), trainer.step()
    assert first.gradient_norm != second.gradient_norm
