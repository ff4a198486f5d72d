"""A server of ours in a process of its own, and clients that ask it at once.

The clients are some lines of asyncio: locust and the openai library parse so much for every token that on two cores,
which they share with the server, one would measure them.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_core.errors import MoescopeError

ROOT = Path(__file__).resolve().parents[1]
_START_SECONDS = 120.0


@dataclass(frozen=True)
class Answered:
    """What came of one question."""

    status: int
    text: str
    tokens: int
    """Of an answer, as its usage says; 0 where a stream was not asked to tell it."""
    first_seconds: float
    """From sending the question to the first token of a streamed answer, to the whole of another; NaN if refused."""
    retry_after: float
    """Seconds that a refused one is to wait; 0 otherwise."""


@dataclass(frozen=True)
class Served:
    """A server that answers."""

    place: tuple[str, int]
    """Its host and port."""
    pid: int

    def processor_seconds(self) -> float:
        """Processor time that it has taken so far; NaN where the system does not say."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2]
        except OSError:
            return float("nan")
        user, system = fields.split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@contextmanager
def served_demo(threads: int, *, slots: int = 8, queue: int = 32) -> Iterator[Served]:
    """The demo run behind the API, in a process of its own. Raises MoescopeError if it fails."""
    options = ["serve", "--run", "demo", "--port", "0", "--slots", str(slots), "--queue", str(queue)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "main.py"), *options],
            stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, env=environment,
        )  # fmt: skip
        try:
            yield Served(_ready(process, said), process.pid)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()
            process.wait()


def _ready(process: subprocess.Popen[bytes], said: Any) -> tuple[str, int]:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        said.seek(0)
        found = re.search(r"http://([\d.]+):(\d+)", said.read())
        if found is not None:
            place = found[1], int(found[2])
            with suppress(OSError):
                if asyncio.run(_get(place, "/health")) == 200:
                    return place
        time.sleep(0.1)
    said.seek(0)
    raise MoescopeError(f"the server did not start: {said.read().strip().splitlines()[-1:]}")


def ask_together(place: tuple[str, int], questions: Sequence[Mapping[str, Any]]) -> list[Answered]:
    """Each from a client of its own, all at once."""

    async def ask_all() -> list[Answered]:
        return list(await asyncio.gather(*(ask(place, question) for question in questions)))

    return asyncio.run(ask_all())


async def ask(place: tuple[str, int], question: Mapping[str, Any]) -> Answered:
    """One question to /v1/completions, on a connection of its own."""
    body = json.dumps(question).encode()
    reader, writer = await asyncio.open_connection(*place)
    try:
        sent = time.perf_counter()
        writer.write(_head("POST", "/v1/completions", place, len(body)) + body)
        status, headers = await _answer_head(reader)
        if status != 200:
            await reader.read()
            return Answered(status, "", 0, float("nan"), float(headers.get("retry-after", 0)))
        if headers.get("transfer-encoding") != "chunked":
            whole = json.loads(await reader.readexactly(int(headers["content-length"])))
            tokens = whole["usage"]["completion_tokens"]
            return Answered(status, whole["choices"][0]["text"], tokens, time.perf_counter() - sent, 0.0)
        texts: list[str] = []
        first, tokens = float("nan"), 0
        async for event in _events(reader):
            if not texts:
                first = time.perf_counter() - sent
            texts += [choice["text"] for choice in event["choices"]]
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        return Answered(status, "".join(texts), tokens, first, 0.0)
    finally:
        writer.close()


async def _get(place: tuple[str, int], path: str) -> int:
    reader, writer = await asyncio.open_connection(*place)
    writer.write(_head("GET", path, place, 0))
    status, _ = await _answer_head(reader)
    writer.close()
    return status


def _head(method: str, path: str, place: tuple[str, int], length: int) -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1", f"Host: {place[0]}:{place[1]}", "Connection: close",
        "Content-Type: application/json", f"Content-Length: {length}",
    ]  # fmt: skip
    return "\r\n".join([*lines, "", ""]).encode()


async def _answer_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = (line.partition(":") for line in lines[1:] if line)
    return int(lines[0].split()[1]), {name.lower(): value.strip() for name, _, value in headers}


async def _events(reader: asyncio.StreamReader) -> Any:
    """The events of a stream, up to [DONE]."""
    held = b""
    while size := int(await reader.readline(), 16):
        held += (await reader.readexactly(size + 2))[:-2]
        *whole, held = held.split(b"\n\n")
        for event in whole:
            content = event.removeprefix(b"data: ")
            if content != b"[DONE]":
                yield json.loads(content)
