"""Many clients, slow ones, and those that go away: no answer is lost or mixed up, no slot is held for nobody."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from api_support import Served, serving_api

from moe_core.errors import RunError
from moe_core.inference import sampling
from moe_core.inference.engine import Engine, Request
from moe_core.inference.model_pool import ModelPool, ModelSource, RunSources
from moe_core.inference.sampling import SamplingConfig
from moe_core.routing import Intervention

SLOTS, QUEUE, CLIENTS = 2, 8, 50


@pytest.fixture(scope="module")
def small(trained_root: Path) -> Iterator[Served]:
    with serving_api(trained_root, slots=SLOTS, queue=QUEUE) as served:
        yield served


def until(holds: Callable[[], Any]) -> None:
    while not holds():
        time.sleep(0.002)


def completion(number: int, **asked: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": [5 + number, 9], "max_tokens": 6, "seed": number, "temperature": 1.0, **asked}


def text_alone(served: Served, asked: dict[str, Any]) -> str:
    change = asked.get("moescope", {}).get("ablate")
    request = Request(
        tuple(asked["prompt"]),
        SamplingConfig(asked["max_tokens"], asked["temperature"], top_k=0, top_p=1, seed=asked["seed"]),
        intervention=None if change is None else Intervention(ablate=tuple(map(tuple, change)), mode="reroute"),
    )
    return Engine(served.scheduler.engine.model).start(request).result().text


async def ask_all(served: Served, questions: list[dict[str, Any]]) -> list[httpx2.Response]:
    limits = httpx2.Limits(max_connections=len(questions))
    async with httpx2.AsyncClient(base_url=served.address, limits=limits, timeout=120) as client:
        return await asyncio.gather(*(client.post("/v1/completions", json=asked) for asked in questions))


def test_of_50_clients_the_queue_takes_what_it_holds_and_tells_the_others_when_to_come_again(
    small: Served, paced: Callable[[int], None]
) -> None:
    questions = [completion(number) for number in range(CLIENTS)]
    before = small.scheduler.counts()
    found: list[httpx2.Response] = []
    thread = threading.Thread(target=lambda: found.extend(asyncio.run(ask_all(small, questions))))
    thread.start()
    until(lambda: small.scheduler.counts().refused - before.refused == CLIENTS - SLOTS - QUEUE)
    paced(1_000_000)
    thread.join()
    answers: dict[int, str] = {}
    for number, response in enumerate(found):
        if response.status_code == 200:
            answers[number] = response.json()["choices"][0]["text"]
            continue
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        error = response.json()["error"]
        assert (error["type"], error["code"], error["param"]) == ("rate_limit_error", "queue_full", None)
        assert "wait" in error["message"]
    assert len(answers) == SLOTS + QUEUE
    while len(answers) < CLIENTS:  # those that were refused come again, all at once
        missing = [number for number in range(CLIENTS) if number not in answers]
        again = asyncio.run(ask_all(small, [questions[number] for number in missing]))
        answers |= {n: r.json()["choices"][0]["text"] for n, r in zip(missing, again, strict=True) if r.is_success}
    assert answers == {number: text_alone(small, questions[number]) for number in range(CLIENTS)}


def test_eight_seeded_requests_together_get_what_each_gets_alone(api: Served) -> None:
    questions = [
        completion(number, max_tokens=10, temperature=number / 4, seed=number * 31)
        | ({"moescope": {"ablate": [[number % 2, number % 4]], "mode": "reroute"}} if number % 3 == 2 else {})
        for number in range(8)
    ]
    together = [response.json()["choices"][0]["text"] for response in asyncio.run(ask_all(api, questions))]
    assert together == [text_alone(api, asked) for asked in questions]
    assert len(set(together)) > 4


def test_more_prompts_than_places_are_answered_one_after_the_other(small: Served) -> None:
    prompts = [[5 + number, 9] for number in range(2 * (SLOTS + QUEUE))]
    asked = {"model": "tiny", "prompt": prompts, "max_tokens": 3, "temperature": 0, "seed": 0}
    found = httpx2.post(f"{small.address}/v1/completions", json=asked, timeout=60).json()
    texts = [choice["text"] for choice in found["choices"]]
    assert texts == [text_alone(small, {**asked, "prompt": prompt}) for prompt in prompts]


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_ends_within_a_token_when_its_client_goes_away(
    stream: bool, small: Served, paced: Callable[[int], None]
) -> None:
    scheduler = small.scheduler
    before = scheduler.counts()
    connection = http.client.HTTPConnection(urlsplit(small.address).netloc)
    asked = completion(1, max_tokens=25, stream=stream)
    connection.request("POST", "/v1/completions", json.dumps(asked), {"Content-Type": "application/json"})
    paced(3)
    until(lambda: scheduler.counts().written_tokens - before.written_tokens >= 2)
    if stream:
        response = connection.getresponse()
        assert response.readline().startswith(b"data: {")
        response.close()
    connection.close()
    assert connection.sock is None
    (row,) = scheduler._running
    until(row.cancelled.is_set)
    written = row.written
    paced(1_000)
    until(lambda: scheduler.counts().cancelled > before.cancelled)
    assert row.written <= written + 1
    assert scheduler.counts().written_tokens - before.written_tokens <= 4


def asgi_post(app: Any, path: str, asked: dict[str, Any], send: Any) -> Any:
    """Answer one request, as a server calls the application; `send` takes what it sends."""
    content = json.dumps(asked).encode()
    messages = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [(b"content-type", b"application/json"), (b"host", b"localhost")],
        "server": ("localhost", 80),
        "client": ("127.0.0.1", 1),
    }
    return app(scope, receive, send)


def test_a_reader_that_takes_nothing_holds_no_slot_and_loses_nothing(api: Served) -> None:
    from moe_core.server.api import create_api

    scheduler, asked = api.scheduler, completion(3, max_tokens=20)
    before = scheduler.counts()

    async def talk() -> bytes:
        may_go_on, got = asyncio.Event(), bytearray()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                got.extend(message["body"])
                await may_go_on.wait()

        app = create_api(api.pool)
        answer = asyncio.ensure_future(asgi_post(app, "/v1/completions", asked | {"stream": True}, send))
        while scheduler.counts().completed == before.completed:
            await asyncio.sleep(0.002)
        assert scheduler.counts().running == 0
        assert len(got) < 400, "one piece was taken"
        may_go_on.set()
        await answer
        return bytes(got)

    pieces = asyncio.run(talk()).decode().split("\n\n")
    assert pieces[-2:] == ["data: [DONE]", ""]
    found = [json.loads(piece.removeprefix("data: "))["choices"][0] for piece in pieces[:-2]]
    assert "".join(choice["text"] for choice in found) == text_alone(api, asked)


def test_a_reader_that_takes_nothing_keeps_no_other_model_out(trained_root: Path, tmp_path: Path) -> None:
    from moe_core.server.api import create_api

    shutil.copytree(trained_root / "tiny", tmp_path / "tiny")
    shutil.copytree(trained_root / "tiny", tmp_path / "other")

    async def talk(pool: ModelPool) -> list[int]:
        app, stalled, may_go_on, statuses = create_api(pool), asyncio.Event(), asyncio.Event(), []

        async def send_never(_: Any) -> None:
            stalled.set()
            await may_go_on.wait()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        asked = completion(1, stream=True)
        slow = asyncio.ensure_future(asgi_post(app, "/v1/completions", asked, send_never))
        await stalled.wait()
        await asyncio.wait_for(asgi_post(app, "/v1/completions", completion(1, model="other"), send), timeout=60)
        may_go_on.set()
        await slow
        return statuses

    with ModelPool(RunSources(tmp_path), most_open=1) as pool:
        assert asyncio.run(talk(pool)) == [200]


def test_a_further_choice_that_waits_for_a_place_is_not_counted_as_refused(
    small: Served, paced: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, start, calls = small.scheduler, small.scheduler.start, []

    def noted(*given: Any, **options: Any) -> Any:
        try:
            return start(*given, **options)
        finally:
            calls.append(given)

    before = scheduler.counts()
    others = [start(Request((5, 9), SamplingConfig(2))) for _ in range(SLOTS + QUEUE - 1)]
    monkeypatch.setattr(scheduler, "start", noted)
    found: list[httpx2.Response] = []
    thread = threading.Thread(target=lambda: found.extend(asyncio.run(ask_all(small, [completion(1, n=2)]))))
    thread.start()
    until(lambda: len(calls) == 2)  # the second choice has asked in vain
    paced(1_000_000)
    thread.join()
    assert [len(response.json()["choices"]) for response in found] == [2]
    assert all(other.result().reason for other in others)
    assert scheduler.counts().refused == before.refused


def test_a_model_that_is_being_opened_holds_up_no_other_answer(trained_root: Path) -> None:
    from moe_core.server.api import create_api

    may_open = threading.Event()
    source = RunSources(trained_root)["tiny"]

    def slow() -> Any:
        may_open.wait()
        return source.open()

    async def talk(pool: ModelPool) -> None:
        transport = httpx2.ASGITransport(create_api(pool))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            assert (await client.get("/health")).json() == {"status": "opening models"}
            asked = [
                asyncio.ensure_future(client.post("/v1/completions", json=completion(n, model="slow")))
                for n in range(60)  # more than there are threads for other work
            ]
            while not pool._opening.locked():
                await asyncio.sleep(0.002)
            assert (await client.get("/health")).status_code == 503
            assert [card["is_open"] for card in (await client.get("/v1/models")).json()["data"]] == [True, False]
            assert (await client.post("/v1/completions", json=completion(1))).status_code == 200
            may_open.set()
            statuses = [(await each).status_code for each in asked]
            assert set(statuses) <= {200, 429}
            await asyncio.to_thread(pool.open_first)
            assert (await client.get("/health")).status_code == 200

    with ModelPool({"tiny": source, "slow": ModelSource(slow)}, opened_first=["slow"]) as pool:
        pool.scheduler("tiny")
        asyncio.run(talk(pool))


def test_switching_lets_running_answers_end_on_the_old_model(
    trained_root: Path, tmp_path: Path, paced: Callable[[int], None]
) -> None:
    from moe_core.server.api import create_api

    shutil.copytree(trained_root / "tiny", tmp_path / "tiny")
    shutil.copytree(trained_root / "tiny", tmp_path / "other")

    async def talk(pool: ModelPool) -> list[httpx2.Response]:
        transport = httpx2.ASGITransport(create_api(pool))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            questions = [completion(1, n=12), completion(2, model="other"), completion(3)]
            old = asyncio.ensure_future(client.post("/v1/completions", json=questions[0]))
            while not (pool.open_schedulers() and pool.scheduler("tiny").counts().running):
                await asyncio.sleep(0.002)
            new = asyncio.ensure_future(client.post("/v1/completions", json=questions[1]))
            while pool.open_schedulers():
                await asyncio.sleep(0.002)
            back = asyncio.ensure_future(client.post("/v1/completions", json=questions[2]))
            assert not old.done()
            paced(1_000)
            return [await old, await new, await back]

    with ModelPool(RunSources(tmp_path), most_open=1) as pool:
        found = asyncio.run(talk(pool))
        assert [response.status_code for response in found] == [200, 200, 200]
        served = Served("", pool, None)
        texts = [[choice["text"] for choice in response.json()["choices"]] for response in found]
        assert texts[0] == [text_alone(served, completion(1, seed=1 + choice)) for choice in range(12)]
        assert texts[1:] == [[text_alone(served, completion(2))], [text_alone(served, completion(3))]]


def test_a_fault_in_the_middle_of_a_stream_is_told_in_it(
    api: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    openai = pytest.importorskip("openai", reason="openai is missing: `make test` installs it")
    draw, drawn = sampling.sample, []

    def failing(*given: Any) -> int:
        drawn.append(0)
        if len(drawn) % 4 == 0:
            raise RunError("the weights are damaged at /home/secret")
        return draw(*given)

    monkeypatch.setattr("moe_core.inference.row.sample", failing)
    client, asked = api.client(), {"model": "tiny", "prompt": [7, 9], "max_tokens": 20, "temperature": 0}
    stream = client.completions.create(**asked, stream=True)
    assert next(stream).choices
    with pytest.raises(openai.APIError, match="the server's log says why"):
        list(stream)
    assert "damaged at /home/secret" in caplog.text
    drawn.clear()
    text = httpx2.post(f"{api.address}/v1/completions", json={**asked, "stream": True}, timeout=60).text
    *_, error, done, end = text.split("\n\n")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "model_failed"
    assert (done, end) == ("data: [DONE]", "")
    drawn.clear()
    with pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(**asked)
    assert caught.value.code == "model_failed"
    assert "/home" not in caught.value.message
