"""Every command on really trained tiny runs, through main(): what it prints, what it writes, what it refuses."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import TINY, Run, assert_one_line

from moe_core.routing import RoutingTrace
from moe_core.runs.folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent


# ---- training ----


@pytest.mark.slow
def test_train_writes_a_run_a_report_and_a_summary(cli: Run, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    code, out, _ = cli(tmp_path / "runs", "--quick", "--run", "mine", "--seed", "3", *TINY, "--json", str(figures))
    assert code == 0
    run = RunFolder("mine", tmp_path / "runs")
    config = run.config()
    assert (config.data.seed, config.training.seed, config.training.steps, config.model.dim) == (3, 3, 10, 32)
    assert "Run mine finished: 10 of 10 steps" in out
    for word in ("Unseen:", "Routing:", "Domains:", "Report:", "Next:"):
        assert word in out
    assert (run.path / "report.md").is_file()
    result = json.loads(figures.read_text())
    assert (result["run"], result["state"], result["step"]) == ("mine", "finished", 10)
    assert result["evaluation"]["unseen"]["nats_per_token"] > 0

    # The name is taken now; and a finished run can be resumed, which changes nothing.
    code, _, err = cli(tmp_path / "runs", "--quick", "--run", "mine", *TINY)
    assert code == 2
    assert_one_line(err, "'mine' exists already", "--resume")
    code, out, _ = cli(tmp_path / "runs", "--run", "mine", "--resume")
    assert code == 0
    assert "10 of 10 steps" in out
    # What would make it another run is refused.
    code, _, err = cli(tmp_path / "runs", "--run", "mine", "--resume", "--model.dim", "64")
    assert code == 1
    assert_one_line(err, "model.dim = 32", "64")


def test_own_text_of_one_domain_has_no_nmi_and_says_so(cli: Run, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    sentences = [
        f"Note {i}: the {i % 7}th meeting moved to room {i * 37 % 91}, bring chapter {i % 13}." for i in range(400)
    ]
    text.write_text("\n\n".join(sentences), encoding="utf-8")
    code, out, _ = cli(tmp_path / "runs", "--run", "own", "--data", str(text), *TINY, "--json")
    assert code == 0
    evaluation = json.loads(out)["evaluation"]
    assert [row["domain_nmi"] for row in evaluation["routing"]] == [None, None]
    assert "one domain" in evaluation["verdicts"]["domains"]


def test_a_second_trainer_is_refused(cli: Run, own_root: Path) -> None:
    with RunFolder("tiny", own_root).lock():
        code, _, err = cli(own_root, "--run", "tiny", "--resume")
    assert code == 1
    assert_one_line(err, "'tiny' is being trained")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.jsonl", b"", "is empty"),
        ("empty.txt", b"", "is empty"),
        ("empty.csv", b"", "is empty"),
        ("empty.parquet", b"", "is empty"),
        ("columns.csv", b"title,body\nx,y\n", "no Text column"),
        ("latin.txt", b"ok\ncaf\xe9 au lait\n", "line 2"),
        ("latin.jsonl", b'{"text": "ok"}\n{"text": "caf\xe9"}\n', "line 2"),
        ("broken.jsonl", b'{"text": "ok"}\n{"text": \n', "line 2"),
        ("field.jsonl", b'{"words": "ok"}\n', "line 1"),
        ("line.txt", b"one line only", "has 1 source; expected at least 3"),
        ("small.jsonl", b'{"text": "a b c"}\n{"text": "d e"}\n{"text": "g h i"}\n', "expected at least one batch"),
        ("notes.pdf", b"%PDF", "'.pdf'; expected"),
        ("random.parquet", b"PAR1" + bytes(range(200)) + b"PAR1", "random.parquet"),
    ],
)
def test_unusable_text_is_one_line(name: str, content: bytes, words: str, cli: Run, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    code, out, err = cli(tmp_path / "runs", "--run", "bad", "--data", str(path), *TINY)
    assert code == 1
    assert out == ""
    assert_one_line(err, words)


def test_text_that_is_not_there(cli: Run, tmp_path: Path) -> None:
    for path in (str(tmp_path / "nope.jsonl"), "", "a\0b"):
        code, _, err = cli(tmp_path / "runs", "--run", "bad", "--data", path, *TINY)
        assert code in (1, 2)
        assert_one_line(err)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="signals and resource limits as Linux has them")
def test_sigterm_and_ctrl_c_save_and_the_run_goes_on(cli: Run, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    environment = {**os.environ, "MOESCOPE_CHECKPOINTS": str(root), "OMP_NUM_THREADS": "1"}
    run = RunFolder("long", root)
    reached = 0
    for number, code, extra in (
        (signal.SIGTERM, 143, [*TINY, "--training.steps=100000"]),
        (signal.SIGINT, 130, ["--resume"]),
    ):
        with subprocess.Popen(
            [sys.executable, str(ROOT / "main.py"), "--run", "long", *extra],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            deadline = time.monotonic() + 240
            while time.monotonic() < deadline and process.poll() is None:
                status = run.status() if run.exists() else None
                if status is not None and status.state == "running" and status.step > reached:
                    break
                time.sleep(0.05)
            process.send_signal(number)
            out, err = process.communicate(timeout=240)
        assert process.returncode == code, err
        assert "what it learned is saved" in out
        assert "Traceback" not in err
        status = run.status()
        assert status is not None
        assert status.state == "stopped"
        assert status.step > reached
        reached = status.step
    code, out, _ = cli(root, "--run", "long", "--resume", "--training.steps", str(reached + 2))
    assert code == 0
    assert f"{reached + 2:,} of {reached + 2:,} steps" in out


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="signals and resource limits as Linux has them")
def test_a_full_disk_while_training_is_one_line(tmp_path: Path) -> None:
    done = limited(tmp_path / "runs", 20_000, "--run", "full", *TINY)
    assert done.returncode == 1
    assert_one_line(done.stderr, "no space left to write")


def limited(root: Path, most_bytes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command that may write no file longer than `most_bytes`: what a full disk looks like."""
    return subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *arguments],
        env={**os.environ, "MOESCOPE_CHECKPOINTS": str(root), "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes)),
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip


# ---- evaluate ----


def test_evaluate_prints_words_and_writes_the_report(cli: Run, own_root: Path) -> None:
    code, out, _ = cli(own_root, "--evaluate")  # the only run there is
    assert code == 0
    assert "Unseen:" in out
    assert (own_root / "tiny" / "report.md").is_file()


@pytest.mark.slow
def test_evaluate_json_is_alone_on_stdout_with_warnings_around(own_root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "always", str(ROOT / "main.py"), "--evaluate", "--run", "tiny", "--json"],
        env={**os.environ, "MOESCOPE_CHECKPOINTS": str(own_root), "PYTHONIOENCODING": "ascii"},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    evaluation = json.loads(done.stdout)
    assert evaluation["run"] == "tiny"
    assert len(evaluation["routing"]) == 2


def test_evaluate_without_any_run(cli: Run, tmp_path: Path) -> None:
    code, _, err = cli(tmp_path, "--evaluate")
    assert code == 2
    assert_one_line(err, "no trained run", "--quick")


def damage_missing(weights: Path) -> None:
    shutil.rmtree(weights)


def damage_truncated(weights: Path) -> None:
    for path in weights.glob("*/model.safetensors"):
        path.write_bytes(path.read_bytes()[:-10])


def damage_flipped(weights: Path) -> None:
    for path in weights.glob("*/model.safetensors"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def damage_no_manifest(weights: Path) -> None:
    for path in weights.glob("*/manifest.json"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_missing, "no checkpoint"),
        (damage_truncated, "model.safetensors"),
        (damage_flipped, "model.safetensors"),
        (damage_no_manifest, "manifest.json"),
    ],
)
def test_a_damaged_checkpoint_is_one_line_everywhere(
    damage: Callable[[Path], None], words: str, cli: Run, own_root: Path, tmp_path: Path
) -> None:
    damage(own_root / "tiny" / "weights")
    out_file = tmp_path / "x.parquet"
    for arguments in (
        ("--evaluate", "--run", "tiny"),
        ("trace", "--run", "tiny", "--text", "a", "--out", str(out_file)),
        ("generate", "--run", "tiny", "--prompt", "a"),
        ("slim", "--run", "tiny"),
    ):
        code, out, err = cli(own_root, *arguments)
        assert code == 1
        assert out == ""
        assert_one_line(err, words)
    assert not out_file.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--evaluate", "--run", "nope"),
        ("--run", "nope", "--resume"),
        ("trace", "--run", "nope", "--text", "a", "--out", "x.parquet"),
        ("plots", "--run", "nope", "--out", "x"),
        ("generate", "--run", "nope", "--prompt", "a"),
        ("slim", "--run", "nope"),
    ],
)
def test_a_run_that_is_not_there_is_one_line_that_says_how_to_make_one(
    arguments: tuple[str, ...], cli: Run, tmp_path: Path
) -> None:
    code, _, err = cli(tmp_path, *arguments)
    assert code == 1
    assert_one_line(err, "no run 'nope'", "--quick --run nope")
    assert not list(tmp_path.iterdir())


# ---- trace, plots ----


@pytest.mark.slow
def test_trace_a_text_and_plot_the_trace(cli: Run, trained_root: Path, tmp_path: Path) -> None:
    text = "Naïve <img onerror=x> :red[y] $z$ 🙂\n"
    target = tmp_path / "new" / "trace.parquet"
    code, out, _ = cli(trained_root, "trace", "--run", "tiny", "--text", text, "--out", str(target), "--json")
    assert code == 0
    figures = json.loads(out)
    trace = RoutingTrace.load(target)
    assert figures["tokens"] == trace.num_tokens
    assert (figures["num_experts"], figures["top_k"], figures["layers"], figures["domains"]) == (4, 2, [0, 1], ["text"])
    code, out, _ = cli(trained_root, "plots", "--trace", str(target), "--out", str(tmp_path / "plots"),
                       "--format", "svg", "--format", "csv", "--json")  # fmt: skip
    assert code == 0
    written = {path.name for path in (tmp_path / "plots").iterdir()}
    assert written == {name for figure in json.loads(out)["figures"] for name in figure["files"]}
    assert all((tmp_path / "plots" / name).stat().st_size > 0 for name in written)


def test_trace_documents_of_several_domains(cli: Run, trained_root: Path, tmp_path: Path) -> None:
    data, target = tmp_path / "texts.jsonl", tmp_path / "trace.parquet"
    records = [{"text": f"text number {i}", "domain": "odd" if i % 2 else "even"} for i in range(6)]
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    code, out, _ = cli(trained_root, "trace", "--run", "tiny", "--data", str(data), "--out", str(target))
    assert code == 0
    assert "of 6 documents through 2 MoE layers" in out
    assert sorted(RoutingTrace.load(target).domains) == ["even", "odd"]


@pytest.mark.slow
def test_plots_of_a_run_default_to_png(cli: Run, trained_root: Path, tmp_path: Path) -> None:
    code, out, _ = cli(trained_root, "plots", "--run", "tiny", "--out", str(tmp_path / "plots"))
    assert code == 0
    files = sorted((tmp_path / "plots").iterdir())
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files if path.name != "flow_sankey.html")
    assert f"{len(files)} figures as png" in out
    assert {"loss.png", "flow_sankey.html"} <= {path.name for path in files}
    assert "(no png of this one: flow_sankey.html)" in out


def test_trace_and_plots_refuse_what_they_cannot_read(cli: Run, trained_root: Path, tmp_path: Path) -> None:
    out_file = str(tmp_path / "x.parquet")
    code, _, err = cli(trained_root, "trace", "--run", "tiny", "--text", "", "--out", out_file)
    assert code == 2
    assert_one_line(err, "no text")
    code, _, err = cli(trained_root, "trace", "--run", "tiny", "--data", "nope.jsonl", "--out", out_file)
    assert code in (1, 2)
    assert_one_line(err, "nope.jsonl")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 broken")
    for path in ("nope.parquet", str(tmp_path / "broken.parquet")):
        code, _, err = cli(trained_root, "plots", "--trace", path, "--out", str(tmp_path / "plots"))
        assert code == 1
        assert_one_line(err, Path(path).name)
    assert not (tmp_path / "plots").exists()


@pytest.mark.slow
def test_a_full_disk_keeps_the_old_trace(trained_root: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "trace.parquet"
    target.parent.mkdir()
    target.write_bytes(b"old")
    done = limited(trained_root, 1000, "trace", "--run", "tiny", "--text", "a b c " * 500, "--out", str(target))
    assert done.returncode == 1
    assert_one_line(done.stderr, "trace.parquet")
    assert target.read_bytes() == b"old"
    assert [path.name for path in target.parent.iterdir()] == ["trace.parquet"]


# ---- generate, runs, slim, data ----


def test_generate_streams_text_and_gives_the_same_as_json(cli: Run, trained_root: Path) -> None:
    arguments = ("generate", "--run", "tiny", "--prompt", "The ", "--max-new-tokens", "12", "--seed", "5")
    code, out, err = cli(trained_root, *arguments)
    assert code == 0
    assert "tokens/s" in err
    code, as_json, _ = cli(trained_root, *arguments, "--json")
    assert code == 0
    result = json.loads(as_json)
    assert {*result} == {
        "prompt", "intervention", "text", "tokens_per_second", "prompt_tokens", "tokens", "cache", "prompt_seconds",
        "prompt_reused",
    }  # fmt: skip
    assert result["prompt"] == "The "
    assert out.startswith(result["text"].splitlines()[0])
    assert result["tokens_per_second"] > 0
    assert 0 < len(result["tokens"]) <= 12
    for token in result["tokens"]:
        assert [len(layer) for layer in token["experts"]] == [2, 2]
        assert all(0 <= expert < 4 for layer in token["experts"] for expert in layer)


def test_greedy_generation_repeats_itself_whatever_the_seed(cli: Run, trained_root: Path) -> None:
    texts = {
        json.loads(
            cli(trained_root, "generate", "--run", "tiny", "--prompt", "A", "--max-new-tokens", "8",
                "--temperature", "0", "--seed", seed, "--json")[1]
        )["text"]
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("option", "value"), [("--temperature", "nan"), ("--temperature", "-1"), ("--top-p", "0"), ("--top-p", "2")]
)
def test_sampling_options_out_of_range(option: str, value: str, cli: Run, trained_root: Path) -> None:
    code, _, err = cli(trained_root, "generate", "--run", "tiny", "--prompt", "A", option, value)
    assert code == 2
    assert_one_line(err, value)


def test_runs_lists_whole_and_broken_runs(cli: Run, own_root: Path) -> None:
    (own_root / "broken").mkdir()
    (own_root / "broken" / "config.json").write_text('{"model": {"top_k": 99}}')
    code, out, _ = cli(own_root, "runs")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["run", "state", "steps"]
    assert lines[1].split()[:3] == ["tiny", "finished", "40/40"]
    assert lines[2].split()[:2] == ["broken", "broken"]
    assert "model.top_k = 99" in lines[2]
    code, out, _ = cli(own_root, "runs", "--json")
    listed: list[dict[str, Any]] = json.loads(out)
    assert [(run["name"], run["state"]) for run in listed] == [("tiny", "finished"), ("broken", "broken")]
    assert listed[0]["unseen_nats"] > 0


def test_runs_in_an_empty_place_says_how_to_begin(cli: Run, tmp_path: Path) -> None:
    code, out, _ = cli(tmp_path / "nowhere", "runs")
    assert code == 0
    assert "python main.py --quick" in out


def test_slim_keeps_the_figures_and_loses_the_optimizer(cli: Run, own_root: Path) -> None:
    before = json.loads(cli(own_root, "--evaluate", "--run", "tiny", "--json")[1])
    size = sum(path.stat().st_size for path in (own_root / "tiny").rglob("*") if path.is_file())
    code, out, _ = cli(own_root, "slim", "--run", "tiny", "--json")
    assert code == 0
    assert json.loads(out)["bytes"] < size
    after = json.loads(cli(own_root, "--evaluate", "--run", "tiny", "--json")[1])
    assert after["unseen"]["nats_per_token"] == pytest.approx(before["unseen"]["nats_per_token"], abs=0.02)
    code, _, err = cli(own_root, "--run", "tiny", "--resume", "--training.steps", "50")
    assert code == 1
    assert_one_line(err, "slimmed")


def test_data_writes_the_splits_and_prints_the_gates(cli: Run, tmp_path: Path) -> None:
    figures = tmp_path / "gates.json"
    code, out, _ = cli(tmp_path, "data", "--out", str(tmp_path / "corpus"), "--documents", "10", "--seed", "2",
                       "--json", str(figures))  # fmt: skip
    assert code == 0
    assert "40 train, 32 validation, 32 unseen documents" in out
    lines = (tmp_path / "corpus" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 40
    assert {*json.loads(lines[0])} == {"text", "domain", "source", "split"}
    gates = json.loads(figures.read_text())["gates"]
    assert all({*gate} == {"name", "domain", "value", "limit", "passed"} for gate in gates)
    for gate in gates:
        assert gate["name"] in out
    # What it writes can be traced and trained on.
    from moe_core.data.sources import read_documents

    assert len(read_documents(str(tmp_path / "corpus" / "unseen.jsonl"))) == 32


def test_help_and_the_list_of_runs_import_nothing_that_they_do_not_need() -> None:
    """Each takes a part of a second, which every call of the command line would wait for."""
    code = (
        "import sys\n"
        "from moe_core.cli.main import main\n"
        "heavy = {'numpy', 'pandas', 'pyarrow', 'pydantic', 'scipy', 'streamlit', 'torch'}\n"
        "for arguments in (['--help'], ['trace', '--help'], ['runs', '--json']):\n"
        "    try:\n"
        "        main(arguments)\n"
        "    except SystemExit:\n"
        "        pass\n"
        "    print('imported:', *sorted(heavy & {*sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    found = [line for line in done.stdout.splitlines() if line.startswith("imported:")]
    assert found == ["imported:", "imported:", "imported: numpy pydantic"]
