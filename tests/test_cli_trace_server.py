"""main.py trace --server: what it prints and refuses, and that a kill or Ctrl-C loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers
from cli_support import Run, assert_one_line
from engine_support import Engine, Handler, recorded_answers, serving
from tokenizers import models

import main as command_line
from moe_core.client.kept_answers import kept_beside
from moe_core.routing import RoutingTrace

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def engine() -> Engine:
    return Engine(recorded_answers("serve_many"))


@pytest.fixture
def address(engine: Engine) -> Iterator[str]:
    with serving(engine) as found:
        yield found


@pytest.fixture
def data(engine: Engine, tmp_path: Path) -> Path:
    """The texts as a user has them."""
    path = tmp_path / "texts.jsonl"
    lines = [{"text": text, "domain": f"d{n % 2}", "source": f"s{n // 3}"} for n, text in enumerate(engine.answers)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_the_trace_and_what_is_said(
    engine: Engine, address: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Run
) -> None:
    monkeypatch.setenv("MOESCOPE_API_KEY", "sesame-seed")
    out, figures_at = tmp_path / "out" / "x.parquet", tmp_path / "figures.json"
    arguments = ["--server", address, "--data", str(data), "--out", str(out), "--max-new-tokens", "40"]
    code, said, err = cli(tmp_path, "trace", *arguments, "--json", str(figures_at))
    assert code == 0
    assert "684 tokens of 12 documents through 4 MoE layers of demo (vllm) in" in said
    assert "Note: the number of experts, 8, is the largest id + 1" in said
    assert "Note: no weights were recorded: every score is 1/2." in said
    trace, figures = RoutingTrace.load(out), json.loads(figures_at.read_text())
    assert trace.domains == ["d0", "d1"]
    assert len(set(trace.source_ids.tolist())) == 4
    assert trace.source.startswith("vLLM routed_experts of demo, texts.jsonl (")
    assert (figures["engine"], figures["tokens"], figures["resumed"], figures["top_k"]) == ("vllm", 684, 0, 2)
    assert engine.headers[-1]["Authorization"] == "Bearer sesame-seed"
    assert "sesame-seed" not in said + err + figures_at.read_text() + trace.source


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--run", "demo"), ("--run does not go with --server",)),
        (("--dtype", "bfloat16"), ("--dtype does not go with --server",)),
        (("--tokens-per-batch", "8"), ("--tokens-per-batch does not go with --server",)),
        (("--concurrency", "0"), ("'0' is not a whole number from 1 to 1024",)),
        (("--timeout", "0"), ("'0' is not a number above 0",)),
        (("--timeout", "nan"), ("'nan' is not a number above 0",)),
        (("--server-kind", "tgi"), ("invalid choice: 'tgi'",)),
        (("--api-key-from", "sk-secret"), ("no variable of the name that --api-key-from gives",)),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_asked(
    arguments: tuple[str, ...], words: tuple[str, ...], engine: Engine, address: str, tmp_path: Path, cli: Run
) -> None:
    out = str(tmp_path / "x.parquet")
    code, _, err = cli(tmp_path, "trace", "--server", address, "--text", "text 0", "--out", out, *arguments)
    assert code == 2
    assert_one_line(err, *words)
    assert "sk-secret" not in err
    assert not engine.paths


@pytest.mark.parametrize("option", ["--concurrency", "--timeout", "--max-new-tokens", "--top-k", "--num-experts"])
def test_options_of_a_server_need_one(option: str, tmp_path: Path, cli: Run) -> None:
    arguments = ("--run", "x", "--text", "x", "--out", str(tmp_path / "x.parquet"), option, "5")
    code, _, err = cli(tmp_path, "trace", *arguments)
    assert code == 2
    assert_one_line(err, f"{option} goes with --server")


def started(address: str, data: Path, out: Path) -> subprocess.Popen[str]:
    arguments = ["trace", "--server", address, "--data", str(data), "--out", str(out), "--concurrency", "2"]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (signal.SIGKILL, -signal.SIGKILL, ()),
        (signal.SIGINT, 130, ("interrupted", "kept in", "the same command goes on from there")),
        (signal.SIGTERM, 143, ("terminated", "kept in", "the same command goes on from there")),
    ],
)
def test_a_command_that_was_stopped_goes_on_and_gives_the_same_file(
    number: signal.Signals, code: int, words: tuple[str, ...], engine: Engine, address: str, data: Path, tmp_path: Path
) -> None:
    """The server holds two answers back while the command is stopped: it ends although it waits for them."""
    reached, released = threading.Semaphore(0), threading.Event()

    def hold(handler: Handler) -> bool:
        reached.release()
        released.wait(timeout=60)
        handler.close_connection = True
        return True

    def answer(handler: Handler) -> bool:  # noqa: ARG001 - a fault takes it
        return False

    engine.faults = [answer] * 4 + [hold] * 2
    out = tmp_path / "x.parquet"
    process = started(address, data, out)
    try:
        assert all(reached.acquire(timeout=60) for _ in range(2))
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        released.set()
    assert process.returncode == code
    assert all(word in err for word in words)
    assert "Traceback" not in err
    kept = kept_beside(out).read_text(encoding="utf-8").splitlines()
    assert len(kept) == 1 + 4
    engine.faults, engine.asked = [], []
    arguments = ["trace", "--server", address, "--data", str(data)]
    assert command_line.main([*arguments, "--out", str(out)]) == 0
    assert len(engine.asked) == 12 - 4
    assert command_line.main([*arguments, "--out", str(tmp_path / "whole.parquet")]) == 0
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not kept_beside(out).exists()


def test_a_tokenizer_gives_the_text_instead_of_the_server(
    engine: Engine, address: str, data: Path, tmp_path: Path, cli: Run
) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    vocabulary = {f"w{number}": number for number in range(2100)}
    tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="w0")).save(str(tokenizer))
    out = tmp_path / "x.parquet"
    arguments = ("--server", address, "--data", str(data), "--out", str(out), "--tokenizer", str(tokenizer))
    assert cli(tmp_path, "trace", *arguments)[0] == 0
    assert RoutingTrace.load(out).token_text(1) == "w449"
    assert "/detokenize" not in engine.paths
