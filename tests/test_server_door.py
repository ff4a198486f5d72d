"""What every request passes and every answer has: key, size, number, one shape of errors; and what is counted."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
from api_support import Served, serving_api
from prometheus_client.parser import text_string_to_metric_families

KEY = "a key of this test"


@pytest.fixture(scope="module")
def guarded(trained_root: Path) -> Iterator[Served]:
    from moe_core.server.api_options import ApiOptions

    options = ApiOptions(api_key=KEY, max_body_bytes=2_000, max_tokens=5, temperature=0.0)
    with serving_api(trained_root, options=options) as served:
        yield served


def error_of(response: httpx2.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/json"
    found: dict[str, Any] = response.json()
    assert set(found) == {"error"}
    assert set(found["error"]) == {"message", "type", "param", "code"}
    assert "\n" not in found["error"]["message"]
    return found["error"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("given", [None, "", "Bearer", f"Bearer {KEY}x", f"Basic {KEY}", "Bearer ä", KEY])
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/openapi.json", "/nothing", "/v1/completions"])
def test_without_the_key_nothing_is_told(given: str | None, path: str, guarded: Served) -> None:
    headers = {} if given is None else {"Authorization": given.encode()}
    response = httpx2.get(guarded.address + path, headers=headers)  # type: ignore[arg-type]
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert error_of(response)["code"] == "invalid_api_key"
    assert KEY not in response.text


def test_with_the_key_all_is_answered_and_health_needs_none(guarded: Served) -> None:
    for kind in ("Bearer", "bearer"):
        response = httpx2.get(f"{guarded.address}/v1/models", headers={"Authorization": f"{kind} {KEY}"})
        assert response.status_code == 200
    assert httpx2.get(f"{guarded.address}/health").json() == {"status": "ready"}


def test_options_of_the_server_are_kept(guarded: Served) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    url = f"{guarded.address}/v1/completions"
    first, second = (httpx2.post(url, json={"prompt": "The"}, headers=headers).json() for _ in range(2))
    assert first["choices"] == second["choices"], "greedy, as the server's temperature says"
    assert first["usage"]["completion_tokens"] <= 5
    refused = httpx2.post(url, json={"prompt": "The", "max_tokens": 6}, headers=headers)
    assert (refused.status_code, error_of(refused)["param"]) == (400, "max_tokens")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused_before_it_is_read(chunked: bool, guarded: Served) -> None:
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(400):
            sent += 1
            yield b" " * 100_000

    content: Any = pieces() if chunked else b" " * 2_001
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    try:
        response = httpx2.post(f"{guarded.address}/v1/completions", content=content, headers=headers, timeout=60)
    except httpx2.TransportError:
        assert chunked, "the server hung up while the client went on sending"
    else:
        assert response.status_code == 413
        assert error_of(response)["code"] == "body_too_large"
    assert sent < 400
    fits = json.dumps({"prompt": "The", "max_tokens": 1}).ljust(2_000)
    answer = httpx2.post(f"{guarded.address}/v1/completions", content=fits, headers=headers)
    assert answer.status_code == 200


def test_a_chunked_body_of_one_byte_too_many_gets_413(guarded: Served) -> None:
    host, _, port = urlsplit(guarded.address).netloc.partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\n"
            "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        connection.sendall(head.encode() + b"7d1\r\n" + b" " * 2_001 + b"\r\n")  # and no end
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "no JSON"),
        (b"", "expected one"),
        (b"[1]", "no JSON object"),
        (b"\xff", "hundreds of levels deep"),
        (b"[" * 100_000, "hundreds of levels deep"),
        (b'{"prompt": "x", "temperature": NaN}', "finite"),
        (b'{"prompt": "x", "temperature": Infinity}', "finite"),
        (b'{"prompt": "x", "seed": ' + b"9" * 5_000 + b"}", "hundreds of levels deep"),
        (b'{"prompt": "\\ud800"}', "lone surrogate"),
        (b'{"prompt": null}', "expected a text"),
        (b'{"prompt": "x", "model": ""}', "at least 1 character"),
        (b'{"prompt": "x", "stream": "yes"}', "boolean"),
        (b'{"messages": [], "prompt": [1.5]}', "expected a text"),
    ],
)
def test_a_body_that_says_nothing_sensible_gets_400(content: bytes, says: str, api: Served) -> None:
    headers = {"Content-Type": "application/json"}
    response = httpx2.post(f"{api.address}/v1/completions", content=content, headers=headers)
    assert response.status_code == 400
    assert says in error_of(response)["message"]


def test_a_body_of_another_type_is_refused_so_that_no_foreign_page_can_send_it(api: Served) -> None:
    response = httpx2.post(f"{api.address}/v1/completions", content=b'{"prompt": "x"}')
    assert response.status_code == 400
    assert "Content-Type: application/json" in error_of(response)["message"]


def test_unknown_paths_and_methods_are_refused_in_the_same_shape(api: Served) -> None:
    missing = httpx2.get(f"{api.address}/v2/models")
    assert (missing.status_code, error_of(missing)["code"]) == (404, "unknown_route")
    wrong = httpx2.get(f"{api.address}/v1/completions")
    assert (wrong.status_code, error_of(wrong)["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"
    unknown = httpx2.get(f"{api.address}/v1/models/a/b")
    assert (unknown.status_code, error_of(unknown)["code"]) == (404, "model_not_found")
    for path in ("/docs", "/redoc"):
        assert httpx2.get(api.address + path).status_code == 404


def test_every_answer_has_the_number_of_its_request(api: Served) -> None:
    given = httpx2.get(f"{api.address}/health", headers={"X-Request-Id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    made = {httpx2.get(f"{api.address}/nothing").headers["x-request-id"] for _ in range(2)}
    assert len(made) == 2
    odd = httpx2.get(f"{api.address}/health", headers={"X-Request-Id": "a b\t" + "x" * 200})
    assert len(odd.headers["x-request-id"]) == 32


def test_models_tell_what_they_are(api: Served) -> None:
    httpx2.post(f"{api.address}/v1/completions", json={"prompt": "The", "max_tokens": 1})
    (card,) = httpx2.get(f"{api.address}/v1/models").json()["data"]
    assert card == httpx2.get(f"{api.address}/v1/models/tiny").json()
    assert (card["id"], card["owned_by"], card["max_model_len"]) == ("tiny", "moescope", 32)
    info = httpx2.get(f"{api.address}/model/info").json()
    assert info == httpx2.get(f"{api.address}/model/info", params={"model": "tiny"}).json()
    model = api.scheduler.engine.model
    assert info["parameters"] == sum(each.numel() for each in model.model.parameters())
    assert 0 < info["active_parameters"] < info["parameters"]
    assert (info["moe_layers"], info["num_experts"], info["experts_per_token"]) == ([0, 1], 4, 2)
    assert (info["context_length"], info["dtype"], info["has_chat_template"]) == (32, "float32", False)


Counted = tuple[str, frozenset[tuple[str, str]]]


def counted(name: str, **labels: str) -> Counted:
    return (name, frozenset(labels.items()))


def metrics_of(served: Served) -> dict[Counted, float]:
    response = httpx2.get(f"{served.address}/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        counted(sample.name, **sample.labels): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_metrics_count_requests_tokens_and_the_experts_of_every_layer(api: Served) -> None:
    httpx2.post(f"{api.address}/v1/completions", json={"prompt": "The", "max_tokens": 1})
    before = metrics_of(api)
    asked = {"prompt": "The tenant", "max_tokens": 4, "temperature": 0, "return_routed_experts": True}
    answer = httpx2.post(f"{api.address}/v1/completions", json=asked).json()
    after = metrics_of(api)
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown[counted("moescope_requests_total", model="tiny", outcome="completed")] == 1
    assert grown[counted("moescope_prompt_tokens_total", model="tiny")] == answer["usage"]["prompt_tokens"]
    written = grown[counted("moescope_written_tokens_total", model="tiny")]
    assert written in (answer["usage"]["completion_tokens"], answer["usage"]["completion_tokens"] - 1)
    assert grown[counted("moescope_http_answers_total", route="/v1/completions", status="200")] == 1
    assert grown[counted("moescope_http_seconds_count", route="/v1/completions")] == 1
    for layer in "01":
        tokens = [
            grown[counted("moescope_expert_tokens_total", model="tiny", layer=layer, expert=str(expert))]
            for expert in range(4)
        ]
        assert sum(tokens) == 2 * (answer["usage"]["prompt_tokens"] + written), "two experts for each token"
    for what in ("running", "waiting"):
        assert after[counted(f"moescope_requests_{what}", model="tiny")] == 0
    assert np.isfinite(list(after.values())).all()


def test_a_log_of_everything_has_no_word_of_prompt_answer_or_key(
    guarded: Served, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    with caplog.at_level("INFO"):
        for asked in ({"prompt": "xyzzy", "user": "xyzzy"}, {"prompt": "xyzzy " * 99}, {"prompt": 7, "stop": "xyzzy"}):
            httpx2.post(f"{guarded.address}/v1/completions?xyzzy", json=asked, headers=headers)
        httpx2.get(f"{guarded.address}/xyzzy", headers=headers)
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("moe_core")]
    assert any("/v1/completions 400" in line for line in ours)
    assert not [line for line in ours if "xyzzy" in line or KEY in line]


def test_no_text_breaks_the_lines_of_a_stream() -> None:
    from moe_core.server.written_answers import event

    text = "a\nb\r\u2028\u2029\x85\x0b\x1c ä \U0001f600"
    first, *rest = event({"text": text}).decode().splitlines()
    assert rest == [""]
    assert json.loads(first.removeprefix("data: ")) == {"text": text}
