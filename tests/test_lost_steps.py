"""A training that its time budget has shortened: said in the result, the reports and on two pages; and continued."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from app_support import Open
from cli_support import TINY, Run

from app import loaders
from moe_core.config import Config
from moe_core.program import program
from moe_core.runs import RunFolder, list_runs
from moe_core.runs.lost_steps import lost_steps
from moe_core.runs.status import RunStatus

BUDGET = "--training.time_budget_seconds"
NO_TIME = ["--training.steps", "30", BUDGET, "0.001"]
"""No machine trains a step in it, after which one more may follow."""
SHORTENED = "Shortened to 2 of the 30 steps that were asked for"


def asked(config: Config, steps: int, budget: float | None) -> Config:
    training = config.training.model_copy(update={"steps": steps, "time_budget_seconds": budget})
    return config.model_copy(update={"training": training})


def test_what_was_lost_is_the_rest_at_the_speed_it_had(tiny_config: Config) -> None:
    config = asked(tiny_config, 350, 145.0)
    tokens = config.training.batch_size * config.training.seq_len
    lost = lost_steps("mine", config, RunStatus("finished", step=169, steps=169, tokens_per_second=2.0 * tokens))
    assert lost is not None
    assert (lost.asked, lost.steps, lost.seconds_more) == (350, 169, 90.5)
    assert lost.sentence.startswith("Shortened to 169 of the 350 steps that were asked for")
    assert "in 2 min 25 s" in lost.sentence
    assert lost.rest == "the other 181 steps, about 1 min 30 s at the speed it had"
    assert lost.command == f"{program()} --run mine --resume --training.time_budget_seconds none"


@pytest.mark.parametrize(
    ("steps", "budget", "status"),
    [
        (350, 145.0, RunStatus("finished", step=350, steps=350)),
        (350, 145.0, RunStatus("stopped", step=169, steps=350)),  # nobody lowered its steps
        (350, 145.0, RunStatus("finished", step=400, steps=400)),
        (350, 145.0, RunStatus("preparing")),
        (350, 145.0, None),
        (350, None, RunStatus("finished", step=169, steps=169)),
    ],
)
def test_nothing_is_lost(tiny_config: Config, steps: int, budget: float | None, status: RunStatus | None) -> None:
    assert lost_steps("mine", asked(tiny_config, steps, budget), status) is None


def test_the_result_says_so_and_the_command_it_gives_trains_the_rest(cli: Run, tmp_path: Path) -> None:
    root, figures = tmp_path / "runs", tmp_path / "figures.json"
    code, out, _ = cli(root, "--quick", "--run", "mine", *TINY[2:], *NO_TIME, "--json", str(figures))
    assert code == 0
    result = json.loads(figures.read_text())
    assert (result["step"], result["steps"], result["asked_steps"]) == (2, 2, 30)
    assert f"WARNING:   {SHORTENED}" in out
    assert out.index("WARNING:") < out.index("Unseen:")
    run = RunFolder("mine", root)
    report = (run.path / "report.md").read_text()
    assert f"**{SHORTENED}" in report
    assert report.index(SHORTENED) < report.index("nats a token")
    assert "Shortened from 30 steps to keep its time budget." in cli(root, "runs")[1]
    assert f"WARNING:   {SHORTENED}" in cli(root, "--evaluate", "--run", "mine")[1]
    html = tmp_path / "report.html"
    assert SHORTENED in cli(root, "report", "--run", "mine", "--out", str(html))[1]
    assert f'<p class="warning"><strong>{SHORTENED}' in html.read_text()

    # As it stands it is finished; the command of the warning gives the steps back.
    assert cli(root, "--run", "mine", "--resume", BUDGET, "0.0005")[1].count("2 of 2 steps") == 1
    (command,) = (line.strip() for line in out.splitlines() if line.strip().endswith(f"--resume {BUDGET} none"))
    code, out, _ = cli(root, *shlex.split(command.removeprefix(program())))
    assert code == 0
    assert "30 of 30 steps" in out
    assert "WARNING" not in out
    assert "Shortened" not in (run.path / "report.md").read_text()
    assert run.metrics("train")["step"].tolist() == list(range(1, 31))


def test_two_pages_say_so_and_offer_the_rest(own_root: Path, dashboard: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder("tiny", own_root)
    assert not dashboard(own_root, run="tiny").warning
    status = run.status()
    assert status is not None
    run.write_config(asked(run.config(), 100, 0.5))
    loaders.forget_runs()
    (summary,) = list_runs(own_root)
    assert summary.lost is not None
    at = dashboard(own_root, run="tiny")
    (said,) = (warning.value for warning in at.warning)
    assert "Shortened to 40 of the 100 steps" in said
    assert at.code[0].value == summary.lost.command
    at = dashboard(own_root, "training", run="tiny")
    assert [warning.value for warning in at.warning] == [said]

    started: list[list[str]] = []

    def start(arguments: list[str], _root: Path) -> int:
        started.append(arguments)
        run.write_status(replace(status, state="running", steps=100))
        return 1

    monkeypatch.setattr("moe_core.training.launch.start_training", start)
    button = at.button(key="resume_training")
    assert button.label.startswith("Train the other 60 steps")
    button.click().run()
    assert started == [summary.lost.arguments]
