"""`export`, `import` and `--init-from` through main(), on a really trained tiny run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_support import TINY, Run, assert_one_line
from training_support import write_corpus

from moe_core.runs.folder import RunFolder


@pytest.fixture
def runs(trained_root: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained_root / "tiny", tmp_path / "runs" / "tiny")
    return tmp_path / "runs"


def test_export_import_fine_tune(cli: Run, runs: Path, tmp_path: Path) -> None:
    to, unseen = tmp_path / "hf", tmp_path / "out" / "unseen.jsonl"
    figures, corpus = tmp_path / "figures.json", write_corpus(tmp_path / "new.jsonl")
    code, out, _ = cli(
        runs, "export", "--run", "tiny", "--to", str(to), "--unseen", str(unseen), "--json", str(figures)
    )
    assert code == 0
    assert "as a qwen3_moe checkpoint" in out
    assert "AutoModelForCausalLM.from_pretrained" in out
    said = json.loads(figures.read_text())
    assert (said["model_type"], said["step"], said["context"]) == ("qwen3_moe", 40, 32)
    assert said["documents"] == len(unseen.read_text().splitlines()) == len(RunFolder("tiny", runs).held_out("unseen"))

    code, out, _ = cli(
        runs, "import", "--from", str(to), "--run", "again", "--data", str(corpus), "--json", str(figures)
    )
    assert code == 0
    assert "--init-from again" in out
    assert json.loads(figures.read_text())["model"]["num_experts"] == 4
    code, out, _ = cli(runs, "runs")
    assert "again" in out
    assert "broken" not in out
    code, out, _ = cli(runs, "generate", "--run", "again", "--prompt", "The ", "--max-new-tokens", "8")
    assert code == 0

    training = [option for option in TINY if option.startswith("--training")]
    code, out, err = cli(runs, "--run", "tuned", "--init-from", "again", "--data", str(corpus), *training)
    assert code == 0, err
    tuned = RunFolder("tuned", runs)
    assert tuned.config().model == RunFolder("again", runs).config().model
    assert tuned.config().training.init_from == "again"
    assert tuned.probe_steps() == [0, 5, 10]
    assert "Unseen:" in out


def test_what_cannot_be_is_said_in_one_line(cli: Run, runs: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (["export", "--run", "nobody", "--to", "x"], ["no run 'nobody'"]),
        (["export", "--run", "tiny", "--to", str(runs)], ["exists already"]),
        (["export", "--run", "tiny", "--to", ""], ["--to ''"]),
        (["export", "--run", "tiny"], ["--to"]),
        (["export", "--run", "tiny", "--to", "x", "--unseen", str(tmp_path)], ["--unseen"]),
        (["import", "--from", str(tmp_path / "missing"), "--run", "a"], ["is not a folder"]),
        (["import", "--from", str(tmp_path), "--run", "a"], ["has no config.json"]),
        (["import", "--from", str(tmp_path), "--run", "../a"], ["run name"]),
        (["--run", "a", "--init-from", "nobody"], ["no run 'nobody'"]),
        (["--run", "tiny", "--resume", "--init-from", "tiny"], ["--resume", "--init-from"]),
        (["--run", "tiny", "--evaluate", "--init-from", "tiny"], ["--evaluate", "--init-from"]),
        (["--run", "a", "--init-from", "tiny", "--model.dim", "64"], ["model.dim = 64", "where it is 32"]),
    ):
        code, out, err = cli(runs, *arguments)
        assert code in (1, 2), arguments
        assert out == ""
        assert_one_line(err, *words)
    assert not (runs / "x").exists()
