"""The figures of a watched training in TensorBoard and trackio, written by them and read back."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from routers_support import model_with
from watch_support import train

from moe_core.runs import RunFolder
from moe_core.training import watch
from moe_core.training.trackers import to_tensorboard, to_tracker, tracked_figures


@pytest.fixture(autouse=True)
def _reads_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_core.training.watching.READ_SHARE", np.inf)


def watched(folder: Path, tracker: Any) -> None:
    model = model_with("softmax").train()
    with watch(model, run="mine", every=2, root=folder, log_to=[tracker]) as log:
        for step in train(model, torch.optim.SGD(model.parameters(), lr=0.01), steps=4):
            log.record(loss=float(step), router_z_loss=0.5)


def test_the_names_are_those_of_megatron_and_what_is_unknown_is_left_out() -> None:
    line = {"layer": 3, "load_imbalance": 1.5, "router_entropy": None, "dead_experts": 2, "dropped_fraction": 0.0}
    other = {**line, "layer": 5, "load_imbalance": 2.5, "dead_experts": 1}
    assert tracked_figures([line, other], {"loss": 2.0, "load_balancing_loss": 1.25}) == {
        "train/loss": 2.0,
        "moe/load_balancing_loss": 1.25,
        "moe/load_imbalance": 2.5,
        "moe/load_imbalance_layer_3": 1.5,
        "moe/load_imbalance_layer_5": 2.5,
        "moe/max_violation": 1.5,
        "moe/max_violation_layer_3": 0.5,
        "moe/max_violation_layer_5": 1.5,
        "moe/dead_experts": 3.0,
        "moe/dead_experts_layer_3": 2.0,
        "moe/dead_experts_layer_5": 1.0,
        "moe/dropped_fraction": 0.0,
        "moe/dropped_fraction_layer_3": 0.0,
        "moe/dropped_fraction_layer_5": 0.0,
    }


def test_tensorboard_reads_back_what_the_run_folder_holds(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(tmp_path / "logs"))
    watched(tmp_path, to_tensorboard(writer))
    writer.close()
    events = EventAccumulator(str(tmp_path / "logs")).Reload()  # type: ignore[no-untyped-call]
    lines = [line for line in RunFolder("mine", tmp_path).metric_records("load") if line["layer"] == 1]
    found = events.Scalars("moe/load_imbalance_layer_1")
    assert [event.step for event in found] == [2, 4]
    assert [event.value for event in found] == pytest.approx([line["load_imbalance"] for line in lines])
    assert [event.value for event in events.Scalars("train/loss")] == [0.0, 1.5]  # of what was recorded before
    assert [event.value for event in events.Scalars("moe/z_loss")] == [0.5, 0.5]


def test_a_tracker_that_fails_is_told_and_left_out_and_the_watching_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def log(self, figures: Mapping[str, float], *, step: int) -> None:
            raise OSError(f"no network for {len(figures)} figures of step {step}")

    with caplog.at_level(logging.WARNING, "moe_core"):
        watched(tmp_path, to_tracker(Broken()))
    (record,) = (record for record in caplog.records if record.name.startswith("moe_core"))
    assert "gets nothing more: OSError: no network for" in record.message
    assert [line["step"] for line in RunFolder("mine", tmp_path).metric_records("train")] == [2, 4]
