"""Run folders: names, status, metrics, held-out documents, the lock, and the list of runs."""

from __future__ import annotations

import resource
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evaluation_support import evaluation_record
from hypothesis import given
from hypothesis import strategies as st

from moe_core.config import Config, load_config
from moe_core.data.document import Document
from moe_core.errors import RunBusyError, RunError, UsageError
from moe_core.runs import RunFolder, RunStatus, list_runs
from moe_core.runs.evaluation import GuessingFigures, SplitFigures
from moe_core.runs.names import is_run_name


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder("one", tmp_path)
    folder.create(load_config("quick", environment={}))
    return folder


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "a\\b", "/etc", ".hidden", "-rf", "a\0b", "x" * 65, "ü", "a b", "nul", "COM1.txt",
     "end.", "a\n", "%2e%2e"],
)  # fmt: skip
def test_names_that_could_leave_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="run name") as caught:
        RunFolder(name, tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@given(st.text(max_size=70))
def test_a_name_that_is_allowed_is_one_plain_folder(name: str) -> None:
    if is_run_name(name):
        root = Path("/root-of-runs")
        assert (root / name).parent == root
        assert Path(name).name == name
        assert name.isascii()
        assert name.isprintable()


def test_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(UsageError, match="link"):
        RunFolder("link", tmp_path / "runs")


def test_root_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESCOPE_CHECKPOINTS", str(tmp_path / "there"))
    assert RunFolder("a").path == tmp_path / "there" / "a"


def test_config_and_status_come_back(run: RunFolder) -> None:
    config = load_config("quick", environment={})
    assert run.config() == config
    assert run.status() is None
    status = RunStatus("running", step=3, steps=9, tokens_per_second=1.5, seconds_left=float("inf"), pid=7)
    run.write_status(status)
    loaded = run.status()
    assert loaded is not None
    assert (loaded.state, loaded.step, loaded.tokens_per_second, loaded.seconds_left) == ("running", 3, 1.5, None)


def test_a_run_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run 'absent'"):
        RunFolder("absent", tmp_path).config()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"x"', b'{"step": 1}', b'{"state": "running", "step": "x"}'])
def test_a_damaged_status_is_named_in_one_line(run: RunFolder, content: bytes) -> None:
    (run.path / "status.json").write_bytes(content)
    with pytest.raises(RunError, match=r"status\.json") as caught:
        run.status()
    assert "\n" not in str(caught.value)


def test_metrics_skip_a_torn_last_line_and_count_a_broken_one(run: RunFolder) -> None:
    assert run.metrics().empty
    run.append_metrics({"kind": "train", "step": 1, "loss": 2.0, "x": float("nan")})
    run.append_metrics({"kind": "event", "step": 1, "message": "ä\n"})
    with run.metrics_path.open("ab") as file:
        file.write(b'{"kind": "train", "st')
    assert run.metrics("train")[["step", "loss"]].values.tolist() == [[1, 2.0]]
    assert run.metrics("event")["message"].tolist() == ["ä\n"]
    assert run.metrics("train")["x"].isna().all()
    run.rewind_metrics(1)
    assert run.metrics_path.read_bytes().endswith(b"\n")
    assert len(run.metric_records()) == 2
    with run.metrics_path.open("ab") as file:
        file.write(b"nonsense\n")
    run.append_metrics({"kind": "event", "step": 1, "message": "after it"})
    assert (len(run.metric_records()), run.metric_log().bad) == (3, 1)


@pytest.mark.parametrize(
    "line",
    ["7", "[]", '"text"', '{"step": 1}', '{"kind": 1}',
     '{"kind": "train"}', '{"kind": "train", "step": -1}', '{"kind": "x", "step": 1}',
     '{"kind": "train", "step": 1.5}', '{"kind": "train", "step": 1, "loss": NaN}', '{"kind": "train", "step": "1"}',
     '{"kind": "train", "step": 1, "loss": "2"}', '{"kind": "train", "step": 1, "loss": 1e400}', "[" * 100_000,
     '{"kind": "train", "step": ' + "9" * 5000 + "}", '{"kind": "load", "step": 1, "layer": 0, "expert_load": [2]}',
     '{"kind": "load", "step": 1, "layer": 0}', '{"kind": "evaluation", "step": 1}', '{"kind": "event", "step": 1}',
     '{"kind": "baseline", "unigram_nats": [1]}', '{"kind": ["train"], "step": 1}', "\x00", ""],
)  # fmt: skip
def test_a_bad_metric_line_is_left_out_and_counted(run: RunFolder, line: str) -> None:
    run.metrics_path.write_text(line + "\n")
    run.append_metrics({"kind": "train", "step": 1, "loss": 2.0})
    for kind in (None, "train"):
        assert run.metric_records(kind) == [{"kind": "train", "step": 1, "loss": 2.0}]
    assert run.metric_log().bad == 1
    run.rewind_metrics(1)
    assert run.metric_log().bad == 1, "nothing is thrown away"


def test_rewinding_drops_later_lines_and_probes(run: RunFolder) -> None:
    run.append_metrics({"kind": "baseline", "uniform_nats": 5.0})
    for step in (10, 20, 30):
        run.append_metrics({"kind": "train", "step": step})
        run.probe_path(step).write_bytes(b"x")
    run.rewind_metrics(20)
    assert [record.get("step") for record in run.metric_records()] == [None, 10, 20]
    assert run.probe_steps() == [10, 20]


def test_a_disk_that_fills_up_leaves_whole_lines(run: RunFolder) -> None:
    run.append_metrics({"kind": "train", "step": 1})
    before = run.metrics_path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))
    try:
        with pytest.raises(RunError, match="no space left"):
            run.append_metrics({"kind": "train", "step": 2, "loss": 1.0})
        with pytest.raises(RunError, match="no space left"):
            run.write_status(RunStatus("running", message="x" * 1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert run.metrics_path.read_bytes() == before
    assert not list(run.path.glob(".tmp-*"))


def test_held_out_documents_come_back(run: RunFolder) -> None:
    validation = [Document("text ✓\n", "code", "code/1", "validation"), Document("x", "law", "law/1", "validation")]
    unseen = [Document("y", "law", "law/2", "unseen")]
    run.write_held_out(validation, unseen, np.array([3, 0, 5]), ("code", "law"))
    assert run.held_out("validation") == validation
    assert run.held_out("unseen") == unseen
    assert run.token_counts().tolist() == [3, 0, 5]
    assert run.token_counts().dtype == np.int64
    assert run.domains() == ("code", "law")
    with pytest.raises(UsageError, match="unknown split"):
        run.held_out("train")
    (run.path / "held_out.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(RunError, match="held_out"):
        run.held_out("unseen")
    (run.path / "corpus.json").unlink()
    with pytest.raises(RunError, match=r"corpus\.json"):
        run.domains()


def test_one_trainer_at_a_time(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_core.runs.folder.LOCK_PATIENCE_SECONDS", 0.1)
    assert not run.is_locked()
    with run.lock():
        assert run.is_locked()
        with pytest.raises(RunBusyError, match="'one' is being trained"), RunFolder("one", run.root).lock():
            pass
    assert not run.is_locked()
    with run.lock():
        pass


def test_asking_whether_it_is_locked_never_keeps_a_trainer_out(run: RunFolder) -> None:
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            run.is_locked()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for _ in range(20):
            with RunFolder("one", run.root).lock():
                pass
    finally:
        done.set()
        thread.join()


def test_stop_is_a_file(run: RunFolder) -> None:
    assert not run.stop_requested()
    run.request_stop()
    assert RunFolder("one", run.root).stop_requested()
    run.clear_stop()
    assert not run.stop_requested()


def test_a_name_with_a_checkpoint_is_taken_one_without_is_not(run: RunFolder) -> None:
    config: Config = run.config()
    run.append_metrics({"kind": "train", "step": 1})
    run.create(config)  # it died before its first checkpoint
    assert run.metric_records() == []
    (run.weights_path / "step-000000").mkdir(parents=True)
    with pytest.raises(UsageError, match="exists already"):
        run.create(config)


def test_the_list_of_runs_survives_broken_ones(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "nowhere") == []
    config = load_config("quick", environment={})
    for name, state, at in (("old", "finished", 1.0), ("dead", "running", 2.0), ("live", "running", 3.0)):
        folder = RunFolder(name, tmp_path)
        folder.create(config)
        folder.write_status(RunStatus(state, step=1, steps=2, updated_at=at))  # type: ignore[arg-type]
        for split in ("validation", "unseen"):
            for nats in (5.0, at):
                folder.append_metrics({"kind": "evaluation", "step": 0, "split": split, "nats_per_token": nats})
    (tmp_path / "odd" / "weights").mkdir(parents=True)
    RunFolder("odd", tmp_path).write_config(config)
    RunFolder("odd", tmp_path).write_status(RunStatus("finished"))
    RunFolder("odd", tmp_path).append_metrics({"kind": "evaluation", "step": 0, "split": "unseen"})
    (tmp_path / "broken").mkdir()
    (tmp_path / "mangled").mkdir()
    (tmp_path / "mangled" / "config.json").write_text('{"model": {"dim": -4}}')
    (tmp_path / "unstarted").mkdir()
    (tmp_path / "unstarted" / "train.log").write_text("warning\nunknown argument '--stepz'\n")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "file").write_text("")
    with RunFolder("live", tmp_path).lock():
        runs = {summary.name: summary for summary in list_runs(tmp_path)}
    assert set(runs) == {"old", "dead", "live", "broken", "mangled", "unstarted", "odd"}
    assert (runs["odd"].state, runs["odd"].unseen_nats) == ("finished", None)
    assert (runs["old"].state, runs["old"].validation_nats, runs["old"].unseen_nats) == ("finished", 1.0, 1.0)
    assert (runs["dead"].state, runs["dead"].is_live) == ("interrupted", False)
    assert (runs["live"].state, runs["live"].is_live) == ("running", True)
    assert runs["broken"].state == runs["mangled"].state == "broken"
    assert "config.json" in str(runs["broken"].error)
    assert "model.dim" in str(runs["mangled"].error)
    assert "--stepz" in str(runs["unstarted"].error)
    assert [summary.name for summary in list_runs(tmp_path)[1:4]] == ["live", "dead", "old"]


def test_figures_of_the_whole_held_out_text_replace_those_of_training(tmp_path: Path) -> None:
    run = RunFolder("scored", tmp_path)
    run.create(Config())
    run.write_status(RunStatus("finished", step=40, steps=40))
    run.append_metrics({"kind": "baseline", "unigram_nats": {"unseen": 6.0, "validation": 6.1}})
    for split, nats in (("validation", 3.0), ("unseen", 4.0)):
        run.append_metrics({"kind": "evaluation", "step": 40, "split": split, "nats_per_token": nats})
    assert run.evaluation() is None
    (summary,) = list_runs(tmp_path)
    assert (summary.validation_nats, summary.unseen_nats, summary.unigram_nats) == (3.0, 4.0, 6.0)
    figures = evaluation_record(
        validation=SplitFigures(2.5, None, None, {}),
        unseen=SplitFigures(3.5, None, None, {}),
        baselines=GuessingFigures(uniform_nats=6.0, unigram_nats=5.5),
    )
    run.write_evaluation(figures)
    (summary,) = list_runs(tmp_path)
    assert (summary.validation_nats, summary.unseen_nats, summary.unigram_nats) == (2.5, 3.5, 5.5)
    run.write_evaluation(replace(figures, step=20))  # of an older checkpoint: training has gone on since
    assert list_runs(tmp_path)[0].unseen_nats == 4.0
    run.evaluation_path.write_text('{"step": 40}')
    assert "--evaluate" in str(list_runs(tmp_path)[0].error)
