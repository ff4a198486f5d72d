"""The bench's clients of the API: answers told from refusals, a full queue waited for, wrong answers counted."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from bench import load as bench_load
from bench.http_clients import ask_together
from bench.http_serving import question_of
from bench.load import HEADER, Load, report
from moe_core.experiments.machine import environment
from moe_core.inference.engine import Engine, Request
from moe_core.inference.model_pool import ModelPool, run_source
from moe_core.inference.open import open_run
from moe_core.inference.sampling import SamplingConfig
from moe_core.server.api import create_api


@pytest.fixture(scope="module")
def place(trained_root: Path) -> Iterator[tuple[str, int]]:
    """The tiny run under the demo's name, one request at a time and one that waits."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    with ModelPool({"demo": run_source("tiny", trained_root)}, slots=1, queue=1) as pool:
        server = uvicorn.Server(uvicorn.Config(create_api(pool), log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield "127.0.0.1", listener.getsockname()[1]
        server.should_exit = True
        thread.join(30)


def test_an_answer_is_the_engines_streamed_or_whole(place: tuple[str, int], trained_root: Path) -> None:
    request = Request("The ", SamplingConfig(max_new_tokens=5, seed=3))
    question = question_of(request)
    (streamed,) = ask_together(place, [{**question, "stream": True}])
    (whole,) = ask_together(place, [question])
    expected = Engine(open_run("tiny", trained_root)).start(request).result().text
    assert streamed.text == whole.text == expected
    assert streamed.status == whole.status == 200
    assert (streamed.tokens, whole.tokens) == (0, 5)
    assert streamed.first_seconds > 0
    (refused,) = ask_together(place, [{**question, "max_tokens": "many"}])
    assert (refused.status, refused.text) == (400, "")


def test_a_full_queue_is_waited_for_and_every_answer_is_the_questions_own(place: tuple[str, int]) -> None:
    asked = [question for question in bench_load.questions(16) if len(question["prompt"]) < 10]
    found = bench_load.load(place, asked, clients=5, seconds=1.5)
    assert len(asked) == 3
    assert found.wrong == 0
    assert all(answer.tokens == 16 for answer in found.given)
    assert found.refused > 0  # one is answered and one waits; the others are refused
    assert all(answer.retry_after > 0 for answer in found.answers if answer.status == 429)
    assert len(found.row()) == len(HEADER)
    assert found.row()[-2:] == [str(found.refused), "0"]
    assert f"| 5 | {found.row()[1]} |" in report([found], environment(1))


def test_an_answer_of_another_text_is_counted(place: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = bench_load.questions(3)[:1]

    def another(*_: object) -> list[object]:
        return [type("Answer", (), {"text": "something else"})]

    monkeypatch.setattr(bench_load, "ask_together", another)
    found: Load = bench_load.load(place, asked, clients=1, seconds=0.1)
    assert found.wrong == len(found.given) > 0
