"""The trainer alone: its steps are those of the loop, whoever calls them and whatever is done in between."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from training_support import begin_trainer, make_config, tensor_hashes, write_corpus

from moe_core.errors import RunError
from moe_core.runs import RunFolder
from moe_core.runs.checkpoint import checkpoint_steps
from moe_core.training.loop import train
from moe_core.training.repeatability import repeatable
from moe_core.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text.jsonl")


def test_steps_by_hand_end_where_the_loop_does(corpus: Path, tmp_path: Path) -> None:
    """Evaluating and saving change nothing: the loop does both on the way, the steps by hand do neither."""
    config = make_config(corpus, training__steps=12, training__evaluation_interval=5, model__router={"noise_std": 0.5})
    looped, by_hand = RunFolder("looped", tmp_path), RunFolder("by-hand", tmp_path)
    train(looped, config)
    with repeatable(1, CPU):
        trainer = begin_trainer(by_hand, config)
        reports = [trainer.step() for _ in range(12)]
    state = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    with repeatable(1, CPU):
        trainer.save()
    assert tensor_hashes(by_hand)["model.safetensors"] == tensor_hashes(looped)["model.safetensors"]
    lines = looped.metrics("train")
    assert [float(report.losses.language_model) for report in reports] == lines["loss"].tolist()
    assert [float(report.gradient_norm) for report in reports] == lines["gradient_norm"].tolist()
    assert [report.learning_rate for report in reports] == lines["learning_rate"].tolist()
    assert not any(report.skipped for report in reports)
    assert all(torch.equal(tensor, state[name]) for name, tensor in trainer.model.state_dict().items())


def test_a_restored_trainer_goes_on_to_the_bit(corpus: Path, tmp_path: Path) -> None:
    config = make_config(corpus, training__steps=10, model__router={"kind": "noisy"})
    run = RunFolder("one", tmp_path)
    with repeatable(1, CPU):
        trainer = begin_trainer(run, config)
        for _ in range(4):
            trainer.step()
        trainer.save()
        assert checkpoint_steps(run) == [4]
        expected = [trainer.step() for _ in range(3)]
        torch.manual_seed(99)  # whatever happens in between
        again = Trainer.restore(run, trainer.config, trainer.data, CPU)
        assert (again.state.step, again.state.saved_step) == (4, 4)
        found = [again.step() for _ in range(3)]
    assert [float(one.losses.total) for one in found] == [float(one.losses.total) for one in expected]
    for (name, tensor), other in zip(
        trainer.model.state_dict().items(), again.model.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, other), name


def test_an_evaluation_is_written_down_and_leaves_the_model_training(corpus: Path, tmp_path: Path) -> None:
    run = RunFolder("one", tmp_path)
    trainer = begin_trainer(run, make_config(corpus))
    trainer.evaluate()
    assert run.metrics("evaluation")["split"].tolist() == ["validation", "unseen"]
    assert run.metrics("load")["layer"].tolist() == [0, 1]
    assert run.probe_steps() == [0]
    assert trainer.state.nats["validation"] == run.metrics("evaluation")["nats_per_token"].iloc[0]
    assert trainer.state.evaluated_step == 0
    assert trainer.model.training


def test_a_step_that_is_not_finite_leaves_the_weights_and_the_third_raises(corpus: Path, tmp_path: Path) -> None:
    trainer = begin_trainer(RunFolder("one", tmp_path), make_config(corpus, training__optimizer="adamw"))
    with torch.no_grad():
        trainer.model.norm.weight.fill_(math.nan)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    assert [trainer.step().skipped for _ in range(2)] == [True, True]
    for name, tensor in trainer.model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)
    with pytest.raises(RunError, match=r"step 3.*3 times in a row"):
        trainer.step()


def test_the_gradient_is_clipped_to_the_norm_asked_for(corpus: Path, tmp_path: Path) -> None:
    trainer = begin_trainer(RunFolder("one", tmp_path), make_config(corpus, training__gradient_clip=0.125))
    norms: list[float] = []

    def note(*_: object) -> None:
        gradients = [parameter.grad for parameter in trainer.model.parameters() if parameter.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    trainer.optimizers[0].register_step_pre_hook(note)
    report = trainer.step()
    assert report.gradient_norm > 0.2, "as it was before"
    assert norms == [pytest.approx(0.125, rel=1e-4)]
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
