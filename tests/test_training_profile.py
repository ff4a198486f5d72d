"""Profiles of a training: the timeline is a Chrome trace with our parts in it, memory is what tensors hold, and the run
is the run that nobody profiled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_support import make_config, tensor_hashes, write_corpus

from moe_core.cli.main import main
from moe_core.model import size
from moe_core.runs import RunFolder
from moe_core.training.loop import train
from moe_core.training.memory_now import MemoryNow
from moe_core.training.memory_report import MemoryReport
from moe_core.training.profiling import WARM_UP, StepProfile

PHASES = ("step", "data", "forward", "routers", "backward", "optimizer")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text.jsonl")


def test_the_timeline_is_a_chrome_trace_with_every_part_of_every_step(corpus: Path, tmp_path: Path) -> None:
    config = make_config(
        corpus, training__steps=8, training__gradient_accumulation=2, model__router={"kind": "sigmoid"},
        training__activation_checkpointing=True,
    )  # fmt: skip
    plain, profiled = RunFolder("plain", tmp_path), RunFolder("profiled", tmp_path)
    train(plain, config)
    lines: list[tuple[int, MemoryNow]] = []
    memory = MemoryReport(4, lambda *line: lines.append(line))
    profile = StepProfile(3, memory)
    train(profiled, config, step=profile)
    assert tensor_hashes(profiled) == tensor_hashes(plain)
    assert [step for step, _ in lines] == [4, 8]
    assert all(2**25 < line.now <= line.peak for _, line in lines)
    path = tmp_path / "out" / "timeline.json"
    profile.export(path)
    events: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    ranges = {name: [one for one in events if one.get("name") == f"moescope.{name}"] for name in PHASES}
    assert all(one["ph"] == "X" and one["dur"] >= 0 for found in ranges.values() for one in found)
    # Two layers and two parts; a router is called again in the backward pass; biases move after the optimizer.
    counts = {"step": 1, "data": 1, "forward": 2, "routers": 2 * 2 * 2 + 1, "backward": 2, "optimizer": 1}
    assert {name: len(found) for name, found in ranges.items()} == {name: 3 * n for name, n in counts.items()}
    first, last = ranges["step"][0], ranges["step"][-1]
    for one in ranges["backward"]:
        assert first["ts"] <= one["ts"]
        assert one["ts"] + one["dur"] <= last["ts"] + last["dur"]
    found = profile.found
    assert found is not None
    assert found.steps == 3
    assert 0 < sum(found.phases.values()) - found.phases["routers"] < found.step
    assert 0 < found.waiting_share < 1
    assert found.operations[0][2] >= found.operations[-1][2] > 0


def test_a_run_with_few_steps_is_profiled_as_far_as_it_goes(corpus: Path, tmp_path: Path) -> None:
    for steps, expected in ((WARM_UP + 1, 1), (WARM_UP, None)):
        profile = StepProfile(10)
        train(RunFolder(str(steps), tmp_path), make_config(corpus, training__steps=steps), step=profile)
        profile.finish()
        assert (profile.found.steps if profile.found else None) == expected


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_memory_is_what_the_tensors_of_a_step_hold(optimizer: str, corpus: Path, tmp_path: Path) -> None:
    activations = {}
    for name, changes in {
        "whole": {},
        "parts": {"training__gradient_accumulation": 4},
        "recomputed": {"training__activation_checkpointing": True},
    }.items():
        config = make_config(corpus, training__steps=2, training__optimizer=optimizer, **changes)
        memory = MemoryReport(1, lambda *_: None)
        train(RunFolder(name, tmp_path), config, step=memory)
        assert memory.parts is not None
        assert memory.estimate is not None
        model = RunFolder(name, tmp_path).config().model
        assert memory.parts.parameters == memory.parts.gradients == 4 * size.total_parameters(model)
        scalars = memory.parts.optimizer - memory.estimate.optimizer  # AdamW counts the steps of each parameter
        assert 0 < scalars < 4 * 60
        activations[name] = memory.parts.activations
        assert 0.2 * memory.estimate.activations < activations[name] < 1.2 * memory.estimate.activations
    assert activations["parts"] == pytest.approx(activations["whole"] / 4, rel=0.1)
    assert activations["recomputed"] < 0.8 * activations["whole"]


def test_tensors_that_share_memory_are_counted_once_and_forgotten() -> None:
    from torch.autograd.graph import saved_tensors_hooks

    from moe_core.training.memory_report import _KeptTensor, _KeptTensors

    weight = torch.nn.Parameter(torch.ones(4, 8))
    kept = _KeptTensors({weight.untyped_storage().data_ptr()})
    x = torch.randn(16, 4)
    with saved_tensors_hooks(kept.keep, _KeptTensor.tensor):
        out = (x @ weight).square().sum() + (x[:8] @ weight).sum()  # x twice; x @ weight for its square
    assert kept.peak == 4 * (16 * 4 + 16 * 8)
    expected = torch.autograd.grad((x @ weight).square().sum() + (x[:8] @ weight).sum(), [weight])[0]
    out.backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, expected)
    assert kept._bytes == 0


def test_the_command_prints_tables_and_writes_the_timeline(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOESCOPE_CHECKPOINTS", str(tmp_path))
    run = ["--preset", "tiny", "--run", "one", "--data", str(corpus), "--training.steps", "6"]
    run += ["--training.evaluation_tokens", "64", "--training.batch_size", "4", "--training.seq_len", "32"]
    timeline, figures = tmp_path / "timeline.json", tmp_path / "figures.json"
    options = ["--profile", "--profile-steps", "2", "--trace-export", str(timeline)]
    options += ["--memory-profile", "--report-interval", "3", "--json", str(figures)]
    assert main([*run, *options]) == 0
    said = capsys.readouterr().out
    for words in ("step 3: ", "step 6: ", "Profile of 2 steps", "waits for its batch", "of these, routers",
                  "ms by itself", "activations", str(timeline)):  # fmt: skip
        assert words in said, words
    assert json.loads(timeline.read_text())["traceEvents"]
    found = json.loads(figures.read_text())
    assert found["profile"]["steps"] == 2
    assert found["memory"]["parameters"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trace-export", "x.json"], "--trace-export goes with --profile"),
        (["--profile-steps", "3"], "--profile-steps goes with --profile"),
        (["--report-interval", "3"], "--report-interval goes with --memory-profile"),
        (["--profile", "--profile-steps", "0"], "'0' is not a whole number from 1 to 1000"),
        (["--profile", "--trace-export", "."], "--trace-export"),
        (["--evaluate", "--profile"], "takes no --profile"),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_one_line(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MOESCOPE_CHECKPOINTS", str(tmp_path))
    assert main(options) != 0
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir()), "refused before anything is written"
