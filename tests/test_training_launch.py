"""A training started from the dashboard is a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from moe_core.errors import RunBusyError, UsageError
from moe_core.runs import RunFolder
from moe_core.training import launch


def wait_for(path: Path, text: str) -> str:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if path.exists() and text in path.read_text():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path} never held {text!r}")


def test_it_runs_detached_with_its_log_in_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "main.py"
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # the dashboard's way, not a training's
    script.write_text(
        "import os, sys\n"
        "assert 'OMP_WAIT_POLICY' not in os.environ\n"
        "print(sys.argv[1:], os.environ['MOESCOPE_CHECKPOINTS'], os.getsid(0) == os.getpid(), 'out')\n"
        "print('err', file=sys.stderr)\n"
    )
    monkeypatch.setattr(launch, "COMMAND", (sys.executable, str(script)))
    pid = launch.start_training(["--quick", "--run", "one"], tmp_path / "runs")
    log = wait_for(tmp_path / "runs" / "one" / "train.log", "err")
    assert f"['--quick', '--run', 'one'] {tmp_path / 'runs'} True out" in log
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and Path(f"/proc/{pid}").exists():
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists(), "an ended trainer must not stay as a zombie"


def test_it_starts_from_any_folder_and_takes_no_file_there_for_a_library(tmp_path: Path) -> None:
    """The real command, from a process whose own path leads to the checkout only by what it was told."""
    (tmp_path / "torch.py").write_text("raise SystemExit('taken for torch')\n")
    root = str(Path(__file__).resolve().parents[1])
    script = (
        f"import sys; sys.path.insert(0, {root!r})\n"
        "from moe_core.training.launch import start_training\n"
        "start_training(['--run', 'one', '--training.steps', 'many'])\n"
    )
    subprocess.run([sys.executable, "-P", "-c", script], cwd=tmp_path, check=True)
    log = wait_for(tmp_path / "checkpoints" / "one" / "train.log", "error: ")
    assert "training.steps" in log


def test_a_busy_run_and_arguments_without_a_run_are_refused(tmp_path: Path) -> None:
    run = RunFolder("one", tmp_path)
    with run.lock():
        run.log_path.write_text("of the trainer at work")
        with pytest.raises(RunBusyError):
            launch.start_training(["--run=one"], tmp_path)
    assert run.log_path.read_text() == "of the trainer at work"
    for arguments in (["--quick"], ["--run"]):
        with pytest.raises(UsageError, match="--run NAME"):
            launch.start_training(arguments, tmp_path)
    with pytest.raises(UsageError, match="not allowed"):
        launch.start_training(["--run", "../x"], tmp_path)
