"""A training started from the dashboard is a process of its own."""

from __future__ import annotations

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
    script.write_text(
        "import os, sys\n"
        "print(sys.argv[1:], os.environ['MOESCOPE_CHECKPOINTS'], os.getsid(0) == os.getpid(), 'out')\n"
        "print('err', file=sys.stderr)\n"
    )
    monkeypatch.setattr(launch, "MAIN", script)
    pid = launch.start_training(["--quick", "--run", "one"], tmp_path / "runs")
    log = wait_for(tmp_path / "runs" / "one" / "train.log", "err")
    assert f"['--quick', '--run', 'one'] {tmp_path / 'runs'} True out" in log
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and Path(f"/proc/{pid}").exists():
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists(), "an ended trainer must not stay as a zombie"


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
