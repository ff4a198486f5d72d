"""The Training page with several runs: which are drawn and along what is in the URL, and what it says of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from app_support import Open, shown
from routers_support import model_with
from streamlit.testing.v1 import AppTest
from watch_support import train

from app import loaders
from moe_core.runs import RunFolder
from moe_core.training import watch

CHARTS = 8
"""Loss, load, and six quantities that every training of ours records."""


@pytest.fixture
def several(own_root: Path) -> Path:
    """The finished run "tiny", a copy that stopped at step 20, one that failed there, and one that was watched."""
    for name, state in (("stopped", "stopped"), ("failed", "failed")):
        shutil.copytree(own_root / "tiny", own_root / name)
        run = RunFolder(name, own_root)
        run.rewind_metrics(20)
        status = run.status()
        assert status is not None
        run.write_status(replace(status, state=state, step=20, message="the disk is full"))  # type: ignore[arg-type]
    model = model_with("softmax").train()
    with watch(model, run="theirs", every=2, root=own_root) as log:
        for _ in train(model, torch.optim.SGD(model.parameters(), lr=0.01)):
            log.record(loss=2.5)
    return own_root


def charts(at: AppTest) -> int:
    return len(at.get("vega_lite_chart"))


def test_several_runs_are_drawn_together_and_the_url_holds_which(several: Path, dashboard: Open) -> None:
    at = dashboard(several, "training", run="tiny")
    assert "the most that all reached" not in shown(at)
    at.multiselect(key="beside").set_value(["stopped", "theirs"]).run()
    next(box for box in at.get("segmented_control") if box.key == "along").set_value("tokens").run()
    assert not at.exception
    assert charts(at) == CHARTS
    words = shown(at)
    assert "the most that all reached, loss on unseen text is" in words
    assert "cannot be told from" in words
    assert "theirs has no loss on held-out text: its own loop trains it." in words
    assert "tiny: finished, step 40 of 40. stopped: stopped, step 20 of 40. theirs: finished, step 7 of 7." in words
    assert "theirs has no learning rate, gradient norm, load-balancing loss and router z-loss" in words
    assert at.query_params["beside"] == ["stopped", "theirs"]
    assert at.session_state["along"] == "tokens"


@pytest.mark.parametrize(("query", "expected"), [("stopped", ["stopped"]), ("gone", []), ("tiny", [])])
def test_a_link_draws_the_runs_that_are_there(several: Path, dashboard: Open, query: str, expected: list[str]) -> None:
    at = dashboard(several, "training", run="tiny", beside=query, along="time")
    assert at.multiselect(key="beside").value == expected
    assert charts(at) == CHARTS
    at.selectbox(key="run").select("stopped").run()  # it cannot stand beside itself
    assert not at.exception
    assert at.multiselect(key="beside").value == []


@pytest.mark.parametrize(
    ("name", "words"),
    [("failed", "Failed at step 20 of 40: The disk is full"), ("stopped", "Stopped at step 20 of 40"),
     ("theirs", "Finished 7 steps")],
)  # fmt: skip
def test_every_state_can_stand_first(several: Path, dashboard: Open, name: str, words: str) -> None:
    at = dashboard(several, "training", run=name, beside="tiny")
    assert words in shown(at)
    assert not at.error
    assert charts(at) >= 4


def test_a_run_that_cannot_be_drawn_is_named_as_it_is(several: Path, dashboard: Open) -> None:
    (several / "stopped").rename(several / "not_drawn")
    at = dashboard(several, "training", run="tiny", beside="not_drawn")
    (several / "not_drawn" / "metrics.jsonl").unlink()
    (several / "not_drawn" / "metrics.jsonl").mkdir()
    loaders.forget_runs()  # as after a second: the list of runs knows that this one is broken
    at.run()
    (said,) = (str(one.value) for one in at.main.caption if "left out" in one.value)
    assert said.startswith(r"not\_drawn is left out\: Cannot read ")  # escaped once


def test_a_run_whose_lines_are_from_before_a_column_says_so_once(
    several: Path, dashboard: Open, keep_lines: Callable[[RunFolder, str], None]
) -> None:
    keep_lines(RunFolder("tiny", several), "gradient_norm")
    at = dashboard(several, "training", run="tiny")
    assert charts(at) == CHARTS - 1
    assert shown(at).count("tiny has no gradient norm: it is from before they were kept.") == 1


@pytest.fixture
def keep_lines() -> Callable[[RunFolder, str], None]:
    """Write a run's metric lines anew, as an older version did: without a column and without checksums."""

    def write(run: RunFolder, column: str) -> None:
        records = [{k: v for k, v in record.items() if k != column} for record in run.metric_records()]
        run.metrics_path.write_text("".join(json.dumps(record) + "\n" for record in records))

    return write
