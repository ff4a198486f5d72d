"""A run that ends when its loss on validation no longer falls, and the checkpoint that was best."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from training_support import make_config, tensor_hashes, timeless_metrics, write_corpus

from moe_core.cli.main import main
from moe_core.errors import UsageError
from moe_core.runs import RunFolder
from moe_core.runs.checkpoint import checkpoint_steps, find_checkpoint, load_run
from moe_core.runs.lost_steps import lost_steps
from moe_core.training import trainer as trainer_module
from moe_core.training.early_stopping import BestEvaluation
from moe_core.training.loop import train


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text.jsonl")


SCORES = {0: 6.0, 2: 5.0, 4: 4.0, 6: 4.5, 8: 4.25, 10: 3.5, 12: 3.6, 14: 3.7, 16: math.nan, 18: 3.4, 20: 3.3}
"""Nats on validation at each evaluation: best at 4, then at 10, and three in a row that are no better."""


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations come out as SCORES says."""
    evaluate = trainer_module.evaluate_splits

    def evaluate_splits(run: RunFolder, model: Any, held_out: Any, state: Any, **others: Any) -> None:
        append = run.append_metrics
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                run,
                "append_metrics",
                lambda record: append(
                    {**record, "nats_per_token": SCORES[state.step]} if record["kind"] == "evaluation" else record
                ),
            )
            evaluate(run, model, held_out, state, **others)
        state.nats["validation"] = SCORES[state.step]

    monkeypatch.setattr(trainer_module, "evaluate_splits", evaluate_splits)


@pytest.mark.usefixtures("scored")
def test_it_ends_finished_says_why_and_the_best_checkpoint_is_there(corpus: Path, tmp_path: Path) -> None:
    config = make_config(
        corpus, training__early_stopping_patience=3, training__keep_best=True, training__evaluation_interval=2,
        training__time_budget_seconds=3600,
    )  # fmt: skip
    run = RunFolder("one", tmp_path)
    result = train(run, config)
    assert (result.state, result.step, result.steps) == ("finished", 16, 20)
    events = [record["message"] for record in run.metric_records("event") if "early" in record["message"]]
    assert events == [
        "stopped early: the loss on validation did not fall at the last 3 evaluations; it was lowest at step 10, "
        "3.5000 nats"
    ]
    assert checkpoint_steps(run) == [10, 14, 16]
    assert load_run("one", tmp_path, step="best").step == 10
    assert load_run("one", tmp_path).step == 16
    assert lost_steps("one", config, run.status()) is None, "no budget took them"
    with pytest.raises(UsageError, match=r"no checkpoint of step 4; it has \[10, 14, 16\]"):
        load_run("one", tmp_path, step=4)
    again = train(run, config, resume=True)
    assert (again.state, again.step) == ("finished", 16)
    assert len([record for record in run.metric_records("event") if "early" in record["message"]]) == 1
    patient = config.model_copy(update={"training": config.training.model_copy(update={"early_stopping_patience": 4})})
    assert train(run, patient, resume=True).step == 20
    assert checkpoint_steps(run) == [18, 20], "the last one is the best"
    assert find_checkpoint(run, "best") == find_checkpoint(run)


@pytest.mark.usefixtures("scored")
@pytest.mark.parametrize("stop", [11, 14])
def test_stopped_and_resumed_ends_where_the_other_does(stop: int, corpus: Path, tmp_path: Path) -> None:
    config = make_config(
        corpus, training__early_stopping_patience=3, training__keep_best=True, training__evaluation_interval=2
    )
    whole, parts = RunFolder("whole", tmp_path), RunFolder("parts", tmp_path)
    assert train(whole, config).step == 16

    def asked() -> bool:
        return any(record["step"] >= stop for record in parts.metric_records("train"))

    assert train(parts, config, stop=asked).state == "stopped"
    assert train(parts, config, resume=True).step == 16
    assert tensor_hashes(parts) == tensor_hashes(whole)
    assert timeless_metrics(parts) == timeless_metrics(whole)
    assert {10, 16} <= set(checkpoint_steps(parts))


def test_the_best_is_the_lowest_and_what_is_no_number_improves_nothing() -> None:
    best = BestEvaluation()
    for step, nats in enumerate([math.nan, 3.0, 3.0, math.inf, 2.0, 2.5]):
        best.add(step, nats)
    assert (best.nats, best.step, best.since) == (2.0, 4, 1)
    assert "at the last evaluation; it was lowest at step 4" in best.sentence


def test_without_the_options_two_checkpoints_stay_and_files_are_as_they_were(corpus: Path, tmp_path: Path) -> None:
    config = make_config(corpus, training__evaluation_interval=5)
    run = RunFolder("one", tmp_path)
    assert train(run, config).step == 20
    assert checkpoint_steps(run) == [15, 20]
    saved = (run.path / "config.json").read_text()
    assert "early_stopping" not in saved
    assert "keep_best" not in saved


def test_commands_open_the_checkpoint_that_is_named(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOESCOPE_CHECKPOINTS", str(tmp_path))
    run = RunFolder("one", tmp_path)
    train(run, make_config(corpus, training__evaluation_interval=10))
    write = ["generate", "--run", "one", "--prompt", "the", "--max-new-tokens", "4", "--seed", "1", "--step"]
    texts = {}
    for step in ("10", "20", "best"):
        assert main([*write, step]) == 0
        texts[step] = capsys.readouterr().out
    assert texts["best"] in (texts["10"], texts["20"])
    assert main([*write, "7"]) != 0
    assert "no checkpoint of step 7; it has [10, 20]" in capsys.readouterr().err
    assert main([*write, "first"]) != 0
    assert "'first' is neither a step nor best" in capsys.readouterr().err
    assert main(["generate", "--model", "x", "--prompt", "the", "--step", "3"]) != 0
    assert "--step goes with --run" in capsys.readouterr().err
