"""`serve` before anything is served: what it refuses, in one line, and which key and models it takes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from cli_support import Run, assert_one_line

from moe_core.cli import serve as command
from moe_core.cli.parser import parse
from moe_core.cli.serve import api_key, serve_config, sources
from moe_core.config.serve import ServeConfig
from moe_core.errors import UsageError
from moe_core.server.listening import listening_socket, url_of

KEY = "a-key-of-sixteen"


@pytest.fixture(autouse=True)
def _no_condor(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONDOR_HOST", "CONDOR_PORT", "CONDOR_MODEL_SIZE", "CONDOR_USE_MOE", "CONDOR_LOG_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cli(cli: Run, trained_root: Path) -> Run:
    return partial(cli, trained_root)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield int(holder.getsockname()[1])


def configured(*arguments: str) -> ServeConfig:
    return serve_config(parse(["serve", *arguments]))


def key_of(*arguments: str) -> str | None:
    parsed = parse(["serve", *arguments])
    return api_key(parsed, serve_config(parsed))


# ---- refusals ----


def test_what_is_not_there_is_refused_at_once(cli: Run, tmp_path: Path) -> None:
    code, _, err = cli("serve", "--run", "missing")
    assert code == 1
    assert_one_line(err, "missing")
    code, _, err = cli("serve", "--model", str(tmp_path / "none"))
    assert code == 2
    assert_one_line(err, "no folder", "config.json")


def test_a_device_that_is_not_here_is_refused(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, _, err = cli("serve", "--run", "tiny", "--device", "cuda")
    assert code == 2
    assert_one_line(err, "serve.device 'cuda'", "not present on this machine")


def test_a_port_that_is_taken_is_named_with_what_to_do(cli: Run, taken_port: int) -> None:
    code, _, err = cli("serve", "--run", "tiny", "--port", str(taken_port))
    assert code == 2
    assert_one_line(err, f"port {taken_port} of 127.0.0.1 is in use", "--port")


@pytest.mark.parametrize("host", ["a..b", "192.0.2.1"])
def test_a_host_that_is_not_this_machine_is_refused(cli: Run, host: str) -> None:
    code, _, err = cli("serve", "--run", "tiny", "--host", host, "--no-api-key")
    assert code == 2
    assert_one_line(err, f"host {host!r}", "address")


def test_without_the_extra_it_says_what_to_install(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "missing_library", lambda: "fastapi")
    code, _, err = cli("serve", "--run", "tiny")
    assert code == 2
    assert_one_line(err, "needs fastapi", "requirements-serve.txt", "moescope[serve]")


def test_a_size_that_memory_cannot_hold_is_refused(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDOR_MODEL_SIZE", "40b")
    monkeypatch.setattr("moe_core.model.size.memory_present", lambda _device: 2**33)
    code, _, err = cli("serve")
    assert code == 2
    assert_one_line(err, "40b", "needs", "what fits: default, quick")


def test_a_log_that_cannot_be_written_is_refused(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, err = cli("serve", "--run", "tiny", "--port", "0", "--log-dir", str(tmp_path / "file" / "logs"))
    assert code == 2
    assert_one_line(err, "cannot log to", "--log-dir")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--training.steps", "3"], "is a key of training"),
        (["--serve.prt", "3"], "did you mean 'serve.port'"),
        (["--trust-remote-code"], "goes with --model"),
        (["--run", "a", "--moe"], "add --model-size"),
        (["--nonsense"], "--nonsense"),
        (["--port", "70000"], "0 to 65535"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments: list[str], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        configured(*arguments)


# ---- configuration ----


def test_options_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDOR_PORT", "1")
    monkeypatch.setenv("CONDOR_MODEL_SIZE", "7b")
    assert configured().port == 1
    found = configured("--port", "2", "--run", "a", "--run", "b", "--serve.temperature", "0", "--queue", "0")
    assert (found.port, found.runs, found.temperature, found.queue) == (2, ("a", "b"), 0.0, 0)
    assert found.model_size is None  # what is named here is all that is served
    assert configured("--moe").use_moe is True
    assert configured("--model-size", "quick", "--no-moe").use_moe is False


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["demo"]),
        (["--run", "a", "--run", "a", "--run", "b"], ["a", "b"]),
        (["--model-size", "demo"], ["demo"]),
        (["--run", "demo", "--model-size", "demo"], ["demo"]),
        (["--run", "a", "--model-size", "demo"], ["a", "demo"]),
        (["--model-size", "demo", "--no-moe"], ["random-demo-dense"]),
        (["--run", "a", "--model", "org/name", "--model-size", "7b", "--moe"], ["a", "org/name", "random-7b-moe"]),
        (["--model", "org/name"], ["org/name"]),
    ],
)
def test_what_is_named_is_served_and_nothing_named_is_the_demo(arguments: list[str], expected: list[str]) -> None:
    assert list(sources(configured(*arguments), False)) == expected


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "same").mkdir()
    with pytest.raises(UsageError, match="two models are called 'same'"):
        sources(configured("--run", "same", "--model", str(tmp_path / "same")), False)


# ---- keys ----


def test_another_host_asks_for_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert key_of() is None
    with pytest.raises(UsageError, match=r"--host 0\.0\.0\.0 lets other machines in: give a key .* --no-api-key"):
        key_of("--host", "0.0.0.0")
    assert key_of("--host", "0.0.0.0", "--no-api-key") is None
    monkeypatch.setenv("MOESCOPE_API_KEY", KEY)
    assert key_of("--host", "0.0.0.0") == key_of() == KEY
    assert key_of("--no-api-key") is None
    file = tmp_path / "key"
    file.write_text("from-the-file\nnot this line\n")
    assert key_of("--api-key-file", str(file)) == "from-the-file"
    assert key_of("--api-key", "on-the-line") == "on-the-line"


@pytest.mark.parametrize("key", ["short", "with a space in it", "schlüssel-mit-umlaut", "x" * 600, "tab\tinside-it"])
def test_a_key_that_no_header_carries_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(UsageError, match="8 to 512 printable ASCII") as caught:
        key_of("--api-key", key)
    assert key not in str(caught.value)


def test_a_key_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--api-key-file .* cannot be read: No such file"):
        key_of("--api-key-file", str(tmp_path / "none"))
    (tmp_path / "empty").touch()
    with pytest.raises(UsageError, match="not usable"):
        key_of("--api-key-file", str(tmp_path / "empty"))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="it is no text"):
        key_of("--api-key-file", str(tmp_path / "bytes"))


# ---- listening ----


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", "127.0.0.1"), ("localhost", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("[::1]", "[::1]")],
)
def test_an_address_is_taken_and_told_as_it_can_be_asked(host: str, expected: str) -> None:
    with listening_socket(host, 0) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://{expected}:{port}"
        with pytest.raises(UsageError, match="in use"):
            listening_socket(host, port)
