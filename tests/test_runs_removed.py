"""What befalls a run's folder: killed writers, a folder that is gone under its trainer, a disk that is full."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import TINY, Run, assert_one_line
from training_support import make_config, write_corpus

from moe_core.errors import RunError
from moe_core.files import TEMPORARY_PREFIX, remove_stale, replaced
from moe_core.runs import RunFolder
from moe_core.runs.checkpoint import checkpoint_steps, slim_run
from moe_core.runs.status import RunStatus
from moe_core.training.loop import train

ROOT = Path(__file__).resolve().parent.parent
SOON = 120.0


def leftovers(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(f"{TEMPORARY_PREFIX}*"))


# ---- killed writers ----

KILLED_WHILE_WRITING = """
import sys
from pathlib import Path
from moe_core.files import replaced
folder = Path(sys.argv[1])
print("ready", flush=True)
while True:
    for name in ("status.json", "probes/step_000000.parquet", "analysis/x.jsonl"):
        with replaced(folder / name) as file:
            file.write(b"x" * 100_000)
"""


def test_what_killed_writers_left_goes_at_the_next_lock_and_is_never_shipped(own_root: Path) -> None:
    run = RunFolder("tiny", own_root)
    (run.path / "analysis").mkdir(exist_ok=True)
    for name in ("status.json", "probes/step_000000.parquet"):
        shutil.copy(run.path / name, own_root / name.replace("/", "_"))
    chance = random.Random(0)
    for _ in range(200):
        writer = subprocess.Popen(
            [sys.executable, "-c", KILLED_WHILE_WRITING, str(run.path)],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(chance.random() / 20)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        if len(leftovers(run.path)) >= 3:
            break
    assert leftovers(run.path)
    for name in ("status.json", "probes/step_000000.parquet"):
        shutil.copy(own_root / name.replace("/", "_"), run.path / name)
    (run.path / "analysis" / "x.jsonl").unlink(missing_ok=True)
    (run.weights_path / f"{TEMPORARY_PREFIX}dead").mkdir()
    size = slim_run(run, max_bytes=10**9)
    assert leftovers(run.path) == []
    shipped = [path for path in run.path.rglob("*") if path.is_file() and path.name != "trainer.lock"]
    assert size == sum(path.stat().st_size for path in shipped)


def test_a_living_writer_keeps_its_temporary_file(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY_PREFIX}left").write_bytes(b"half")
    with replaced(tmp_path / "report.md") as file:
        file.write(b"whole")
        remove_stale(tmp_path)
        assert len(leftovers(tmp_path)) == 1
    assert (tmp_path / "report.md").read_bytes() == b"whole"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "folder", "link", "pipe"])
def test_anything_that_was_left_goes(kind: str, tmp_path: Path) -> None:
    path, outside = tmp_path / f"{TEMPORARY_PREFIX}x", tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    make = {"file": path.touch, "folder": path.mkdir, "link": lambda: path.symlink_to(outside)}
    make.get(kind, lambda: os.mkfifo(path))()
    remove_stale(tmp_path)
    assert not path.exists()
    assert not path.is_symlink()
    assert (outside / "kept").exists()


# ---- a folder that is gone under its trainer ----


def remove(run: RunFolder) -> None:
    shutil.rmtree(run.path)


def rename(run: RunFolder) -> None:
    run.path.rename(run.path.with_name("renamed"))


def replace(run: RunFolder) -> None:
    rename(run)
    shutil.copytree(run.path.with_name("renamed"), run.path)
    (run.path / "trainer.lock").unlink()
    (run.path / "trainer.lock").touch()
    (run.path / "stop").touch()


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("change", [remove, rename, replace], ids=lambda change: change.__name__)
@pytest.mark.parametrize("step", [0, 3, 10])
def test_training_stops_when_its_folder_is_no_longer_there(
    step: int, change: Callable[[RunFolder], None], tmp_path: Path
) -> None:
    """At a step, between two lines of its log, or in the midst of an evaluation."""
    run = RunFolder("one", tmp_path / "runs")
    config = make_config(write_corpus(tmp_path / "corpus.jsonl"))
    before: dict[str, bytes] = {}

    def progress(stage: str, done: int, _total: int) -> None:
        if stage == "training" and done == max(step, 1) and not before:
            change(run)
            before.update(content(run.root))
            before["-"] = b""

    with pytest.raises(RunError, match="was removed, renamed or replaced") as caught:
        train(run, config, progress=progress)
    assert "\n" not in str(caught.value)
    del before["-"]
    assert content(run.root) == before, "nothing was written, and no half of a run was made"
    assert run.path.exists() == (change is replace)


def test_a_renamed_run_goes_on_under_its_new_name(tmp_path: Path) -> None:
    run = RunFolder("one", tmp_path / "runs")
    config = make_config(write_corpus(tmp_path / "corpus.jsonl"))

    def progress(stage: str, done: int, _total: int) -> None:
        if stage == "training" and done == 12:
            rename(run)

    with pytest.raises(RunError):
        train(run, config, progress=progress)
    assert train(RunFolder("renamed", run.root), config, resume=True).step == 20


@pytest.mark.slow
def test_the_command_ends_with_one_line_and_exit_code_1(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    arguments = [*TINY, "--training.steps=100000", "--training.evaluation_interval=100000", "--run", "mine", "--quick"]
    environment = {**os.environ, "MOESCOPE_CHECKPOINTS": str(root)}
    process = subprocess.Popen(
        [sys.executable, "main.py", *arguments], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    run, deadline = RunFolder("mine", root), time.monotonic() + SOON
    while not (run.exists() and (status := run.status()) is not None and status.state == "running" and status.step):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run.path.rename(tmp_path / "away")
    _, err = process.communicate(timeout=SOON)
    assert process.returncode == 1
    assert_one_line("".join(line for line in err.splitlines(keepends=True) if line.startswith("error")), "'mine'")
    assert not run.path.exists()


WRITES: dict[str, Callable[[RunFolder], object]] = {
    "status": lambda run: run.write_status(RunStatus("running")),
    "metrics": lambda run: run.append_metrics({"kind": "event", "step": 1, "message": "x"}),
    "report": lambda run: run.write_file("report.md", b"x"),
}


@pytest.mark.parametrize("what", WRITES)
def test_a_folder_that_goes_between_the_look_and_the_write_is_said_to_be_gone(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(write_corpus(tmp_path / "corpus.jsonl"))
    run = RunFolder("mine", tmp_path / "runs")
    with run.lock():
        run.create(config)
        looked = run.check_in_place

        def look_and_go() -> None:
            looked()
            if run.path.exists():
                run.path.rename(tmp_path / "away")

        monkeypatch.setattr(run, "check_in_place", look_and_go)
        with pytest.raises(RunError, match="the folder of run 'mine' was removed, renamed or replaced"):
            WRITES[what](run)
    assert not run.path.exists()


def test_a_run_that_is_gone_is_not_made_again_by_what_is_found_out_about_it(own_root: Path) -> None:
    run = RunFolder("tiny", own_root)
    shutil.rmtree(run.path)
    with pytest.raises(RunError, match="no run 'tiny'"):
        run.write_file("report.md", b"x")
    assert not run.path.exists()


# ---- a full disk ----


@pytest.mark.slow
def test_a_full_disk_advises_resume_only_where_something_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full from the n-th write on, for every n that a short training has."""
    config = make_config(write_corpus(tmp_path / "corpus.jsonl"), training__steps=2, training__evaluation_interval=1)
    saved, fsync = os.fsync, []

    def limited(number: int) -> Callable[[int], None]:
        fsync.clear()

        def full(descriptor: int) -> None:
            fsync.append(descriptor)
            if len(fsync) > number:
                raise OSError(errno.ENOSPC, "No space left on device")
            saved(descriptor)

        return full

    advice = set()
    for number in range(1000):
        run = RunFolder(f"run-{number}", tmp_path / "runs")
        monkeypatch.setattr(os, "fsync", limited(number))
        try:
            train(run, config)
            break
        except RunError as error:
            said = str(error)
        finally:
            monkeypatch.setattr(os, "fsync", saved)
        assert "no space left to write" in said
        assert "\n" not in said
        assert ("--resume" in said) == bool(checkpoint_steps(run)), said
        assert leftovers(run.path) == []
        advice.add("--resume" in said)
        assert train(run, config, resume=bool(checkpoint_steps(run))).state == "finished", "it goes on as it was told"
        shutil.rmtree(run.path)
    assert advice == {True, False}
    assert number > 10


def test_a_command_that_finds_the_disk_full_before_a_run_exists_says_start_again(
    tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = cli(tmp_path, *TINY, "--quick", "--run", "mine")
    assert code == 1
    assert_one_line(err, "no space left to write", "start it again")
    assert "--resume" not in err
