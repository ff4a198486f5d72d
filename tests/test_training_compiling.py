"""Blocks that torch.compile has compiled train as they are; `aot_eager` traces as a compiler does and needs none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from training_support import begin_trainer, make_config, write_corpus

from moe_core.config import Config, ModelConfig
from moe_core.config.router import ROUTER_KINDS
from moe_core.errors import TraceError
from moe_core.model import MoETransformer
from moe_core.model.losses import routing_losses
from moe_core.model.routers import RouterOutput
from moe_core.routing import capture, intervene
from moe_core.runs import RunFolder
from moe_core.training import compiling, trainer
from moe_core.training.clock import Clock
from moe_core.training.trainer import Trainer

GPU = torch.device("cuda")
IDS = torch.arange(24).view(2, 12) % 20
EVERYTHING: dict[str, Any] = {
    "router": {"expert_dropout": 0.2, "expert_output_dropout": 0.2, "balancing": "bias", "noise_std": 0.1},
    "capacity_factor": 1.0,
    "first_dense_layers": 1,
    "shared_expert_hidden_dim": 8,
    "shared_expert_gate": True,
}


# What the tracer itself does, and hides from everyone who has not made warnings errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'> should not be instantiated"),
]


@pytest.fixture(autouse=True)
def _without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def small_model(**changes: Any) -> MoETransformer:
    tree = {"vocab_size": 257, "dim": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8,
            "num_experts": 4, "expert_hidden_dim": 16, "dense_hidden_dim": 16, "max_seq_len": 16}  # fmt: skip
    torch.manual_seed(0)
    model = MoETransformer(ModelConfig.model_validate({**tree, **changes}))
    model.prepare_routers(torch.bincount(IDS.flatten(), minlength=257), 5)
    return model.train()


def loss_and_gradients(model: MoETransformer) -> tuple[list[Tensor], tuple[RouterOutput, ...]]:
    """Of one step in bfloat16, with the same noise every time; then what the routers chose."""
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        logits, routed = model(IDS)
        loss = logits.float().logsumexp(-1).mean() + routing_losses(routed, model.config.router).total
    parameters = [one for one in model.parameters() if one.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)], routed


@pytest.mark.parametrize("kind", [*ROUTER_KINDS, None])
def test_compiled_layers_of_every_router_give_the_same_losses_and_gradients(kind: str | None) -> None:
    """None: whole blocks, one of them dense, whose router drops slots. Of the kinds only what differs is compiled."""
    model = small_model(**({"router": {"kind": kind}} if kind else EVERYTHING))
    names = list(model.state_dict())
    expected, routed = loss_and_gradients(model)
    if kind:
        for block in model.layers:
            block.moe.compile(dynamic=False, backend=compiling.BACKEND)  # type: ignore[operator, union-attr]
    else:
        compiling.compile_blocks(model)
    found, compiled_routed = loss_and_gradients(model)
    assert list(model.state_dict()) == names
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == (1 if kind else 2), "layers that are alike share what is compiled"
    for one, other in zip(compiled_routed, routed, strict=True):
        assert isinstance(one, RouterOutput)
        assert one.notes.keys() == other.notes.keys()
        assert torch.equal(one.router_indices, other.router_indices)
    for value, wanted in zip(found, expected, strict=True):
        assert (value - wanted).norm() <= 0.02 * wanted.norm() + 1e-7


def test_a_compiled_model_runs_uncompiled_where_hooks_are_needed() -> None:
    model = small_model().eval()
    with torch.autocast("cpu", torch.bfloat16):
        plain = model(IDS).logits
        compiling.compile_blocks(model)
        model(IDS)
        with pytest.raises(TraceError, match="stayed silent"), intervene(model, ablate=[(0, 0)]):
            model(IDS)
        with compiling.uncompiled(), capture(model) as recorder, intervene(model, ablate=[(0, 0)]):
            model(IDS[:, :7])
        assert counters["stats"]["unique_graphs"] == 1
        compiling.run_blocks_uncompiled(model)
        assert torch.equal(model(IDS).logits, plain)
    assert recorder.trace(token_ids=IDS[:, :7]).num_tokens == 14


def test_blocks_are_compiled_on_cuda_in_bfloat16_where_the_tools_are(monkeypatch: pytest.MonkeyPatch) -> None:
    tools = {"cc": "/usr/bin/cc"}
    monkeypatch.setattr(shutil, "which", tools.get)
    monkeypatch.setattr(compiling, "find_spec", lambda name: name)
    monkeypatch.delenv("CC", raising=False)

    def can(device: torch.device = GPU, autocast: bool = True, **changes: Any) -> bool:
        return compiling.can_compile(Config.model_validate(changes), device, autocast=autocast)

    assert can()
    assert not can(torch.device("cpu"))
    assert not can(autocast=False)
    assert not can(training={"compile": "none"})
    assert not can(model={"expert_hidden_dropout": 0.1})
    tools.clear()
    assert not can()


def test_compiling_pays_back_where_a_tenth_of_the_time_left_is_longer_than_it_takes() -> None:
    clock = Clock()
    for _ in range(compiling.JUDGED_AT_STEP):
        clock.add_step(0.1)
    enough = round(compiling.FIRST_STEP_SECONDS / compiling.SAVED_SHARE / 0.1)
    assert not compiling.compiling_pays_back(clock, enough - 1)
    assert compiling.compiling_pays_back(clock, enough + 1)
    clock.add_step(20.0, compiling=True)
    assert clock.seconds_per_step == pytest.approx(0.1)
    assert clock.elapsed == pytest.approx(0.1 * compiling.JUDGED_AT_STEP + 20)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text.jsonl")


def compiling_trainer(corpus: Path, root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """One that compiles at its third step."""
    monkeypatch.setattr(compiling, "JUDGED_AT_STEP", 2)
    monkeypatch.setattr(compiling, "FIRST_STEP_SECONDS", 0.0)
    monkeypatch.setattr(trainer, "can_compile", lambda config, *_, **__: config.training.compile == "auto")
    mode = "none" if name == "plain" else "auto"
    config = make_config(corpus, training__steps=8, training__autocast="bfloat16", training__compile=mode)
    return begin_trainer(RunFolder(name, root), config)


def events(one: Trainer) -> list[str]:
    return [line["message"] for line in one.run.metrics("event").to_dict("records")] if one.state.step else []


def test_a_run_compiles_once_and_evaluates_uncompiled(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, compiled = (compiling_trainer(corpus, tmp_path, name, monkeypatch) for name in ("plain", "compiled"))
    losses = []
    for one in (plain, compiled):
        losses.append([float(one.step().losses.total) for _ in range(4)])
        graphs = counters["stats"]["unique_graphs"]
        one.evaluate()  # other lengths, capture, and a text that is written token by token
        losses[-1] += [float(one.step().losses.total) for _ in range(2)]
        assert counters["stats"]["unique_graphs"] == graphs
    assert counters["stats"]["unique_graphs"] == 1
    assert losses[0][:2] == losses[1][:2]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert [event for event in events(compiled) if "compile" in event] == [
        "the blocks are compiled now; this step takes up to half a minute"
    ]
    assert (plain.state.clock.steps, compiled.state.clock.steps) == (6, 5)
    assert compiled.run.probe_steps() == [4]


def test_a_run_whose_blocks_cannot_be_compiled_goes_on_without(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError("no space for the compiler\nand more")

    plain, compiled = (compiling_trainer(corpus, tmp_path, name, monkeypatch) for name in ("plain", "compiled"))
    monkeypatch.setattr(compiling, "BACKEND", broken)
    reports = [[one.step() for _ in range(4)] for one in (plain, compiled)]
    totals, compiled_totals = ([float(report.losses.total) for report in steps] for steps in reports)
    assert totals == compiled_totals
    said = events(compiled)[-1]
    assert "could not be compiled and the run goes on without" in said
    assert "no space for the compiler" in said
