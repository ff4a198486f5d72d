"""`serve` as a process of its own: it starts, answers, logs, and ends by signals. Two processes for all tests."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from moe_core.server.guarded_answers import HEADERS

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("serve")]
ROOT = Path(__file__).resolve().parents[1]
KEY = "the-key-of-the-test"
SECONDS = 120.0
PROMPT = "an-unmistakable-prompt"


@dataclass
class Process:
    """A server that runs, and where it listens."""

    process: subprocess.Popen[bytes]
    told: dict[str, Any]
    folder: Path

    @property
    def log(self) -> str:
        return (self.folder / "logs" / "serve.log").read_text()

    @property
    def said(self) -> str:
        return (self.folder / "stdout").read_text()

    def connect(self) -> http.client.HTTPConnection:
        address = urlsplit(self.told["url"])
        return http.client.HTTPConnection(str(address.hostname), address.port, timeout=SECONDS)

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], str]:
        method, content = ("GET", None) if body is None else ("POST", json.dumps(body))
        with closing(self.connect()) as connection:
            connection.request(method, path, content, {"Content-Type": "application/json", **headers})
            answer = connection.getresponse()
            text = answer.read().decode()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, text

    def wait_until_ready(self) -> list[int]:
        """Each status of /health once, in the order in which they came."""
        seen: list[int] = []
        deadline = time.monotonic() + SECONDS
        while seen[-1:] != [200] and time.monotonic() < deadline:
            assert self.process.poll() is None, "the server ended"
            status = self.ask("/health")[0]
            seen += [status] if seen[-1:] != [status] else []
        return seen

    @contextmanager
    def stream(self, model: str, choices: int, tokens: int, **headers: str) -> Iterator[http.client.HTTPResponse]:
        """A long answer, whose first words have come."""
        body = {"model": model, "prompt": PROMPT, "max_tokens": tokens, "n": choices, "stream": True, "temperature": 0}
        body["stream_options"] = {"include_usage": True}
        headers = {"Content-Type": "application/json", **headers}
        with closing(self.connect()) as connection:
            connection.request("POST", "/v1/completions", json.dumps(body), headers)
            with connection.getresponse() as answer:
                assert answer.status == 200
                assert answer.readline().startswith(b"data: ")
                yield answer

    def end(self) -> int:
        return self.process.wait(timeout=SECONDS)


def start(folder: Path, checkpoints: Path, *options: str) -> Process:
    told = folder / "told.json"
    options = ("--port", "0", "--log-dir", str(folder / "logs"), "--json", str(told), *options)
    with (folder / "stdout").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "main.py", "serve", *options],
            cwd=ROOT,
            env={**os.environ, "MOESCOPE_CHECKPOINTS": str(checkpoints), "OMP_NUM_THREADS": "1"},
            stdout=said,
            stderr=subprocess.DEVNULL,
        )
    deadline = time.monotonic() + SECONDS
    while not told.exists() and time.monotonic() < deadline:
        assert process.poll() is None, "the server ended"
        time.sleep(0.05)
    return Process(process, json.loads(told.read_text()), folder)


@pytest.fixture(scope="module")
def started(trained_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """For this machine alone, without a key; the last test that uses it ends it."""
    server = start(tmp_path_factory.mktemp("served"), trained_root, "--run", "tiny", "--model-size", "tiny")
    yield server
    server.process.kill()
    server.process.wait()


@pytest.fixture(scope="module")
def open_to_others(trained_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """At every address, with a key from a file; the last test that uses it ends it."""
    folder = tmp_path_factory.mktemp("open")
    (folder / "key").write_text(f"{KEY}\n")
    options = ("--host", "0.0.0.0", "--api-key-file", str(folder / "key"))
    server = start(folder, trained_root, "--model-size", "default", *options)
    yield server
    server.process.kill()
    server.process.wait()


def test_it_says_where_it_listens_before_it_is_ready(started: Process) -> None:
    assert started.told["models"] == ["tiny", "random-tiny"]
    assert started.told["process"] == started.process.pid
    assert started.wait_until_ready() in ([503, 200], [200])


def test_it_answers_and_each_model_by_its_name(started: Process) -> None:
    assert started.ask(f"/v1/models?key={PROMPT}")[0] == 200
    body = {"prompt": PROMPT, "max_tokens": 5, "temperature": 0}
    for model, named in (("tiny", {}), ("tiny", {"model": "tiny"}), ("random-tiny", {"model": "random-tiny"})):
        status, _, text = started.ask("/v1/completions", body | named)
        assert status == 200, text
        assert json.loads(text)["model"] == model
        assert json.loads(text)["usage"]["completion_tokens"] == 5
    listed = json.loads(started.ask("/v1/models")[2])
    assert [card["id"] for card in listed["data"]] == ["tiny", "random-tiny"]


def test_a_chat_as_condors_document_has_it(started: Process) -> None:
    system = {"role": "system", "content": "You are a helpful assistant."}
    messages = [system, {"role": "user", "content": "Hi"}]
    body = {"model": "random-tiny", "messages": messages, "temperature": 0.7, "max_tokens": 100}
    status, _, text = started.ask("/v1/chat/completions", body)
    assert status == 200, text
    found = json.loads(text)
    assert found["choices"][0]["message"]["role"] == "assistant"
    assert found["moescope"]["base_model"] is True
    info = json.loads(started.ask("/model/info?model=random-tiny")[2])
    assert "not trained" in info["description"]


def test_every_answer_carries_the_headers_and_a_foreign_host_gets_none(started: Process) -> None:
    for path, body in (("/health", None), ("/v1/models", None), ("/none", None), ("/v1/completions", {"prompt": 3})):
        _, headers, _ = started.ask(path, body)
        assert {name: headers[name.lower()] for name in HEADERS} == HEADERS, path
        status, headers, text = started.ask(path, body, Host="evil.example")
        assert status == 400
        assert {name: headers[name.lower()] for name in HEADERS} == HEADERS
        error = json.loads(text)["error"]
        assert error["code"] == "wrong_host"
        assert "'evil.example'" in error["message"]
        assert "--serve.allowed_hosts evil.example" in error["message"]


def test_a_head_without_end_is_not_kept(started: Process) -> None:
    address = urlsplit(started.told["url"])
    answer = b""
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 1_000_000 + b"\r\n\r\n"
    connection = socket.create_connection((str(address.hostname), address.port), timeout=SECONDS)
    with connection, suppress(ConnectionError):  # cut off in the middle, what the server had said may be lost
        connection.sendall(head)
        answer = connection.recv(1_000)
    assert not answer or answer.startswith(b"HTTP/1.1 400 ")


def test_a_signal_lets_the_answer_under_way_end(started: Process) -> None:
    choices = 12  # more than there are slots
    with started.stream("random-tiny", choices, 100) as answer:
        started.process.send_signal(signal.SIGTERM)
        *pieces, last = [line.removeprefix("data: ") for line in answer.read().decode().splitlines() if line]
    assert last == "[DONE]"
    reasons = [choice["finish_reason"] for piece in pieces for choice in json.loads(piece)["choices"]]
    assert sum(reason in ("length", "stop") for reason in reasons) == choices
    assert json.loads(pieces[-1])["usage"]["completion_tokens"] > 0
    assert started.end() == 128 + signal.SIGTERM
    assert f"Serving tiny and random-tiny at {started.told['url']}; " in started.said
    assert "random-tiny has random weights" in started.said
    assert f"curl {started.told['url']}/v1/completions" in started.said


def test_the_log_tells_what_happened_and_nothing_that_was_asked(started: Process) -> None:
    log = started.log
    assert "ready after" in log
    assert "POST /v1/completions 200" in log
    assert "SIGTERM: answers under way end" in log
    assert PROMPT not in log


def test_others_need_the_key_but_not_to_know_whether_it_is_well(open_to_others: Process) -> None:
    open_to_others.wait_until_ready()  # without a key
    body = {"prompt": PROMPT, "max_tokens": 2}
    for headers in ({}, {"Authorization": "Bearer wrong-key"}, {"Authorization": KEY}):
        status, _, text = open_to_others.ask("/v1/completions", body, **headers)
        assert status == 401
        assert KEY not in text
    assert open_to_others.ask("/v1/completions", body, Authorization=f"Bearer {KEY}", Host="lab.example.org")[0] == 200
    assert KEY not in open_to_others.log + open_to_others.said


def test_a_second_signal_cuts_off_what_the_first_one_lets_end(open_to_others: Process) -> None:
    server, bearer = open_to_others, f"Bearer {KEY}"
    with server.stream("random-default", 8, 900, Authorization=bearer) as answer:
        server.process.send_signal(signal.SIGTERM)
        while (status := server.ask("/health")[0]) == 200:
            time.sleep(0.02)
        assert status == 503
        status, headers, text = server.ask("/v1/completions", {"prompt": PROMPT}, Authorization=bearer)
        assert status == 503
        assert int(headers["retry-after"]) > 0
        assert {name: headers[name.lower()] for name in HEADERS} == HEADERS
        assert json.loads(text)["error"]["code"] == "shutting_down"
        assert answer.readline() == b"\n"
        assert answer.readline().startswith(b"data: ")  # it goes on
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 128 + signal.SIGTERM
    assert "SIGTERM again: answers under way are cut off" in server.log
