"""The benchmark of a GPU, run small on a processor: all that it would measure works. Its figures mean nothing here."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from cli_support import Run

from bench import gpu
from bench.results import Goal
from bench.suite import BENCHMARKS, Scale

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def processor_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.slow
@pytest.mark.usefixtures("processor_alone")
def test_every_row_of_the_gpu_is_measured_small_on_a_processor() -> None:
    rows = gpu.run(Scale(smoke=True, rounds=1))
    assert [row.case.partition(",")[0] for row in rows] == [
        "product of two 256 x 256 bfloat16 matrices", "MFU", "training step", "MFU",
        "share of the bare step in the whole loop", "decoding one text", "decoding one text",
        "generate on the demo", "trace --model", "capture overhead", "generate --model",
    ]  # fmt: skip
    assert all(math.isfinite(row.value) and row.goal is None for row in rows)
    assert all(0 < row.value < 2 for row in rows if row.case.startswith(("MFU", "share", "trace")))


def test_goals_are_those_of_the_shapes_that_a_gpu_gets() -> None:
    assert [(shape.mfu.floor, shape.mfu.stretch) for shape in gpu.SHAPES] == [
        (0.42, 0.5), (0.34, 0.45), (0.34, 0.45), (0.19, 0.28)
    ]  # fmt: skip
    assert [shape.memory for shape in gpu.SHAPES if shape.memory] == [Goal(37.0, 28.0, at_most=True)]
    assert gpu.SHAPES[0].config.model.experts_per_token == 8


@pytest.mark.usefixtures("processor_alone")
def test_without_a_gpu_it_says_in_a_line_what_is_needed_and_writes_nothing(cli: Run, tmp_path: Path) -> None:
    kept = {path: path.stat().st_mtime_ns for path in (ROOT / "docs").rglob("*")}
    code, out, err = cli(tmp_path, "bench", "--only", "gpu")
    assert (code, err) == (0, "")
    (line,) = [line for line in out.splitlines() if "not measured" in line]
    assert "needs a CUDA device" in line
    assert "python main.py bench --only gpu" in line
    assert {path: path.stat().st_mtime_ns for path in (ROOT / "docs").rglob("*")} == kept
    assert BENCHMARKS["gpu"].missing(smoke=True) == ""
