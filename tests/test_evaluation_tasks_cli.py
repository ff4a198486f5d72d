"""`python main.py --evaluate --suite`: what it writes, that it repeats itself, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from cli_support import Run

import main as command_line
from moe_core.evaluation.tasks import Context, Outcome, run_suite, select, written
from moe_core.evaluation.tasks.registry import Benchmark
from moe_core.runs.checkpoint import load_run

ROOT = Path(__file__).resolve().parent.parent
# The example of the documentation.
PLUGIN = (ROOT / "docs" / "evaluation.md").read_text().split("```python\n")[1].split("```")[0]
PLACE = f"(line {len(PLUGIN.splitlines()) + 4})"


@pytest.fixture
def runs(trained_root: Path, tmp_path: Path) -> Path:
    """A checkpoints folder of one's own with the run "tiny"."""
    shutil.copytree(trained_root / "tiny", tmp_path / "runs" / "tiny")
    return tmp_path / "runs"


@pytest.fixture
def cli(cli: Run, runs: Path) -> Run:
    """`--evaluate --suite --run tiny` with more options."""
    return partial(cli, runs, "--evaluate", "--suite", "--run", "tiny")


@pytest.mark.slow
def test_a_suite_from_the_shell_writes_its_report_and_json(runs: Path, tmp_path: Path) -> None:
    plugin, figures = tmp_path / "plugin.py", tmp_path / "figures.json"
    plugin.write_text(PLUGIN)
    arguments = ["--evaluate", "--suite", "--run", "tiny", "--tasks", "capitals,text,arc"]
    arguments += ["--plugin", str(plugin), "--text", "The tenant shall pay. " * 20, "--json", str(figures)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *arguments],
        env={**os.environ, "MOESCOPE_CHECKPOINTS": str(runs)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "arc: not run: no questions were given; --arc FILE.jsonl gives them" in done.stdout
    result = json.loads(figures.read_text())
    assert result == json.loads((runs / "tiny" / "suite.json").read_text())
    assert [task["name"] for task in result["tasks"]] == ["text", "arc", "capitals"]
    for score in (score for task in result["tasks"] for score in task["scores"]):
        assert score["level_is"]
        assert score["level"] is not None
        assert any(words in score["verdict"] for words in ("than chance", "from chance", "cannot be tested"))
        assert score["low"] is None or score["low"] <= score["value"] <= score["high"]
    report = (runs / "tiny" / "suite.md").read_text()
    for heading in ("## Summary", "## Architecture", "## Training", "## Results", "## Samples", "### capitals"):
        assert heading in report
    assert "2 MoE layers of 4 experts" in report
    assert "| 40 of 4 sequences of 32 tokens |" in report


def test_the_same_seed_gives_the_same_report(cli: Run, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NEW_TOKENS": 8, "CODE_TOKENS": 60, "DOCUMENTS_PER_DOMAIN": 1, "CODE_DOCUMENTS": 2}.items():
        monkeypatch.setattr(written, name, value)
    reports = []
    for seed in ("1", "1", "2"):
        code, out, _ = cli("--tasks", "generation,code_syntax", "--seed", seed, "--json")
        assert code == 0
        assert out == (runs / "tiny" / "suite.json").read_text()
        reports.append((out, (runs / "tiny" / "suite.md").read_text()))
    assert reports[0] == reports[1] != reports[2]
    tasks = {task["name"]: task for task in json.loads(reports[0][0])["tasks"]}
    scores = {score["name"]: score for score in tasks["generation"]["scores"]}
    assert [*scores] == ["distinct-1", "distinct-2", "distinct-4", "repetition"]
    assert all(score["against"] == "held-out text" for score in scores.values())
    assert [sample["title"] for sample in tasks["generation"]["samples"]] == ["finance", "legal", "code", "general"]
    valid = {score["name"]: score for score in tasks["code_syntax"]["scores"]}
    assert valid["correct so far"]["level"] == 1.0
    assert valid["parses"]["level"] <= 1.0
    assert "generation, legal: after" in reports[0][1]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--tasks", "perplexit"], 2, "unknown task 'perplexit'; did you mean 'perplexity'"),
        (["--tasks", "haiku"], 2, "expected some of perplexity"),
        (["--tasks", ","], 2, "names no task"),
        (["--text-file", "missing.txt"], 2, "no file at --text-file 'missing.txt'"),
        (["--text", ""], 2, "--text is empty"),
        (["--text", "x", "--text-file", "y"], 2, "not allowed with argument --text"),
        (["--text", "x", "--tasks", "perplexity"], 2, "--text goes with the task 'text'"),
        (["--arc", "missing.jsonl"], 2, "no file at --arc 'missing.jsonl'"),
        (["--gsm8k", "bad.jsonl"], 1, "'bad.jsonl' line 2 is not valid JSON"),
        (["--mmlu", "empty.jsonl"], 1, "is empty"),
        (["--plugin", "missing.py"], 2, "no file at --plugin 'missing.py'"),
        (["--plugin", "broken.py"], 2, "--plugin 'broken.py' failed: ZeroDivisionError: division by zero (line 2)"),
        (["--plugin", "syntax.py"], 2, "--plugin 'syntax.py' failed: SyntaxError"),
        (["--plugin", "nothing.py"], 2, "registers no benchmark"),
        (["--plugin", "taken.py"], 2, "benchmark name 'perplexity' is taken"),
        (["--seed", "x"], 2, "--seed 'x' is not a whole number"),
        (["--data", "texts.jsonl"], 2, "takes no --data"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_before_anything_runs(
    cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.jsonl").write_text('{"question": "q", "answer": "#### 1"}\n{"question": \n')
    Path("empty.jsonl").write_text("")
    Path("broken.py").write_text("x = 0\ny = 1 / x\n")
    Path("syntax.py").write_text("def f(:\n")
    Path("nothing.py").write_text("x = 1\n")
    Path("taken.py").write_text(PLUGIN.replace("capitals", "perplexity"))
    found, out, err = cli(*arguments)
    assert (found, out) == (code, "")
    assert words in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--suite"], ["--evaluate", "--text", "x"], ["--tasks", "perplexity"]])
def test_options_of_the_suite_need_it(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(arguments) == 2
    assert "goes with --evaluate" in capsys.readouterr().err


def test_a_plugin_that_fails_is_reported_and_the_others_go_on(cli: Run, tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        PLUGIN
        + """
@benchmark("plug_wrong", "?")
def wrong(context: Context) -> Outcome:
    raise KeyError("nope")


@benchmark("plug_empty", "?")
def empty(context: Context) -> Outcome:
    return None
"""
    )
    code, out, _ = cli("--plugin", str(plugin), "--tasks", "capitals,plug_wrong,plug_empty")
    assert code == 1
    assert f"plug_wrong: not run: it failed: KeyError: 'nope' {PLACE}" in out
    assert "plug_empty: not run: it failed: TypeError: it gave back NoneType, expected an Outcome" in out
    assert "capitals" in out
    # The same file again replaces what it registered.
    assert cli("--plugin", str(plugin), "--tasks", "capitals")[0] == 0


def test_a_bug_of_our_own_is_not_hidden(trained_root: Path) -> None:
    def wrong(_: Context) -> Outcome:
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        run_suite(load_run("tiny", trained_root), [Benchmark("wrong", "?", wrong, None)])


def test_what_cannot_be_run_says_why(trained_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROMPT_TOKENS", "CODE_DOMAIN"):
        monkeypatch.setattr(written, name, {"PROMPT_TOKENS": 10**6, "CODE_DOMAIN": "poems"}[name])
    result = run_suite(load_run("tiny", trained_root), select(["generation", "code_syntax", "text"]))
    reasons = {task.name: task.not_run for task in result.tasks}
    assert "no unseen document of run 'tiny' has" in reasons["generation"]
    assert reasons["code_syntax"] == "the run's text has no domain 'poems' to go on from"
    assert reasons["text"] == "no text was given; --text TEXT or --text-file FILE gives one"


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm_eval is installed")
def test_without_lm_eval_its_tasks_are_not_run(cli: Run, tmp_path: Path) -> None:
    questions = tmp_path / "gsm8k.jsonl"
    questions.write_text('{"question": "q", "answer": "#### 1"}\n')
    code, out, _ = cli("--tasks", "gsm8k,mmlu", "--gsm8k", str(questions))
    assert code == 0
    assert "gsm8k: not run: lm_eval is not installed" in out
    assert "mmlu: not run: no questions were given" in out
