"""`python main.py ablate`: what it prints and keeps, what it refuses; as a process of its own, killed and gone on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from training_support import make_config, write_corpus

from moe_core.evaluation.ablation import STAGE, ablation_map
from moe_core.inference.held_out import ABLATED_TOKENS_PER_DOMAIN, held_out_text
from moe_core.runs.analysis import read_ablation_map, read_table
from moe_core.runs.checkpoint import load_run
from moe_core.runs.folder import RunFolder
from moe_core.training.loop import train

ROOT = Path(__file__).resolve().parent.parent
Ablate = Callable[..., tuple[int, str, str]]
MANY = 24
"""Experts of a layer in the run that is killed: enough for a second of work."""


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "main.py"), "ablate", *arguments]


def environment(own_root: Path) -> dict[str, str]:
    return {**os.environ, "MOESCOPE_CHECKPOINTS": str(own_root), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def ablate(own_root: Path, cli: Callable[..., tuple[int, str, str]]) -> Ablate:
    """`python main.py ablate` with more arguments."""
    return partial(cli, own_root, "ablate")


@pytest.fixture(scope="module")
def wide_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run "wide": two layers of many experts, trained for one step."""
    folder = tmp_path_factory.mktemp("wide")
    config = make_config(write_corpus(folder / "corpus.jsonl"), model__num_experts=MANY, training__steps=1)
    train(RunFolder("wide", folder), config)
    return folder


@pytest.fixture(scope="module")
def undisturbed(wide_root: Path) -> pd.DataFrame:
    """The map of that run, computed in one go and kept nowhere."""
    return ablation_map(load_run("wide", wide_root))


@pytest.mark.slow
def test_the_whole_map_in_words_and_numbers_and_at_once_the_second_time(own_root: Path, ablate: Ablate) -> None:
    code, out, err = ablate("--run", "tiny", "--json", str(own_root / "figures.json"))
    assert code == 0, err
    for words in ("layer  expert", "measure", "rho", "nats per token", "experts"):
        assert words in out
    figures: dict[str, Any] = json.loads((own_root / "figures.json").read_text())
    assert (figures["run"], figures["mode"], figures["text"]) == ("tiny", "zero", "held-out text")
    run = RunFolder("tiny", own_root)
    loaded = load_run("tiny", own_root)
    assert figures["tokens"] == len(held_out_text(loaded.run, loaded.tokenizer, ABLATED_TOKENS_PER_DOMAIN))
    assert figures["step"] == loaded.step
    effects = pd.DataFrame(figures["effects"])
    assert len(effects) == 2 * 4 * (1 + len(run.domains()))
    pd.testing.assert_frame_equal(effects, read_ablation_map(run), check_dtype=False)
    assert [row["measure"] for row in figures["correlations"]] == list(read_table(run, "correlations")["measure"])  # type: ignore[index]
    assert len(figures["importance"]) == 8
    assert figures["verdicts"]["ablation"] in out
    assert figures["verdicts"]["importance"] in out

    files = {path: path.stat().st_mtime_ns for path in (run.path / "analysis").iterdir()}
    arguments = command("--run", "tiny", "--json")
    again = subprocess.run(arguments, env=environment(own_root), capture_output=True, text=True, check=True)
    repeated = json.loads(again.stdout)  # JSON alone, words on stderr
    assert figures["verdicts"]["importance"] in again.stderr
    assert {**repeated, "seconds": 0} == {**figures, "seconds": 0}
    assert files == {path: path.stat().st_mtime_ns for path in (run.path / "analysis").iterdir()}


def test_one_expert_in_another_mode_and_on_other_text(own_root: Path, ablate: Ablate) -> None:
    text = own_root / "mine.jsonl"
    lines = [
        {"text": f"The {word} shall be {word} again.", "domain": word} for word in ("tax", "law") for _ in range(3)
    ]
    text.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    options = ("--layer", "1", "--expert", "2", "--mode", "reroute", "--data", str(text))
    code, out, err = ablate("--run", "tiny", *options, "--json")
    assert code == 0, err
    figures = json.loads(out)
    assert {(row["layer"], row["expert"]) for row in figures["effects"]} == {(1, 2)}
    assert {row["domain"] for row in figures["effects"]} == {"all", "tax", "law"}
    assert (figures["mode"], figures["text"]) == ("reroute", str(text))
    assert "correlations" not in figures
    run = RunFolder("tiny", own_root)
    assert read_ablation_map(run, "reroute", text=str(text)) is not None
    assert read_ablation_map(run, "reroute") is None


def test_what_cannot_be_done_is_one_line(own_root: Path, ablate: Ablate) -> None:
    empty = own_root / "empty.txt"
    empty.write_text("")
    for arguments, code, words in (
        (["--run", "nope"], 1, "no run 'nope'"),
        (["--run", "tiny", "--layer", "7"], 2, "layer 7 has no experts; expected one of the MoE layers 0, 1"),
        (["--run", "tiny", "--layer", "1", "--expert", "4"], 2, "no expert 4; expected 0 to 3"),
        (["--run", "tiny", "--expert", "1"], 2, "needs --layer"),
        (["--run", "tiny", "--mode", "half"], 2, "half"),
        (["--run", "tiny", "--layer", "x"], 2, "not a whole number"),
        (["--run", "tiny", "--data", str(empty)], 1, "is empty"),
        ([], 2, "--run"),
    ):
        found, out, err = ablate(*arguments)
        assert (found, out) == (code, ""), (arguments, err)
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert words in err
    assert not (own_root / "tiny" / "analysis").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="signals as Linux has them")
def test_killed_in_the_middle_it_goes_on_and_ends_the_same(
    wide_root: Path, undisturbed: pd.DataFrame, tmp_path: Path
) -> None:
    shutil.copytree(wide_root / "wide", tmp_path / "wide")
    run = RunFolder("wide", tmp_path)
    with subprocess.Popen(
        command("--run", "wide"), env=environment(run.root), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 240
        while lines(run) < 5:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        process.wait(timeout=240)
    assert process.returncode == -signal.SIGKILL
    partial = read_ablation_map(run)
    assert partial is not None
    known = len(partial[["layer", "expert"]].drop_duplicates())
    assert 4 <= known < 2 * MANY
    (path,) = (run.path / "analysis").glob("*.jsonl")
    kept = path.read_bytes().rpartition(b"\n")[0]

    stages: list[tuple[str, int]] = []
    ablation_map(load_run("wide", run.root), run=run, progress=lambda stage, done, _: stages.append((stage, done)))
    assert next(done for stage, done in stages if stage == STAGE) == known
    assert path.read_bytes().startswith(kept)
    pd.testing.assert_frame_equal(read_ablation_map(run), undisturbed, atol=1e-6, rtol=0)


def lines(run: RunFolder) -> int:
    """Lines of the journal so far."""
    return sum(path.read_bytes().count(b"\n") for path in (run.path / "analysis").glob("*.jsonl"))


def test_the_curve_as_a_process_of_its_own(own_root: Path) -> None:
    """In words, as JSON, and kept with the run."""
    from moe_core.routing.measures.pruning import pruning_verdict, top_k_verdict
    from moe_core.runs.pruning_file import read_curves

    asked = ("--curve", "--by", "load", "--by", "random", "--orders", "2", "--json", str(own_root / "curve.json"))
    done = subprocess.run(
        command("--run", "tiny", *asked), env=environment(own_root), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    kept = read_curves(RunFolder("tiny", own_root))
    assert kept is not None
    assert kept.curves.criteria == ["load", "random"]
    assert pruning_verdict(kept.curves) in done.stdout
    assert top_k_verdict(kept.curves) in done.stdout
    assert "reading the scored text 11 times" in done.stderr  # as it is, 3 orders at 2 points each, 4 numbers of top-k
    figures = json.loads((own_root / "curve.json").read_text())
    assert figures["curves"]["top_k"] == 2
    assert {point["by"] for point in figures["curves"]["points"]} == {"load", "random"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--curve", "--layer", "1"), "--layer does not go with --curve"),
        (("--curve", "--mode", "reroute"), "always chooses again"),
        (("--by", "load"), "--by goes with --curve"),
    ],
)
def test_what_does_not_go_with_a_curve_is_refused(ablate: Ablate, arguments: tuple[str, ...], said: str) -> None:
    code, _, err = ablate("--run", "tiny", *arguments)
    assert code != 0
    assert said in err


def test_a_model_of_the_other_library_is_measured_too(tmp_path: Path, ablate: Ablate) -> None:
    pytest.importorskip("transformers", reason="transformers is missing: pip install -r requirements-huggingface.txt")
    from huggingface_support import saved_model

    folder = saved_model(tmp_path / "some-moe", "qwen3_moe")
    text = tmp_path / "text.jsonl"
    lines = [{"text": f"The café number {i} opened at nine.", "domain": "legal", "source": f"s{i}"} for i in range(4)]
    text.write_text("\n".join(json.dumps(line) for line in lines))
    model = ("--model", str(folder), "--data", str(text), "--mode", "reroute")
    code, out, err = ablate(*model, "--layer", "1", "--json", str(tmp_path / "map.json"))
    assert code == 0, err
    assert "switching off 4 experts, about" in err
    effects = pd.DataFrame(json.loads((tmp_path / "map.json").read_text())["effects"])
    assert sorted(set(zip(effects["layer"], effects["expert"], strict=True))) == [(1, expert) for expert in range(4)]
    code, out, err = ablate(*model[:4], "--curve", "--orders", "2")
    assert code == 0, err
    assert "Each token is sent to 2 of 4 experts." in out
