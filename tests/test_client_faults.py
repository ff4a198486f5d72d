"""Servers that are busy, away, slow, without routing or no engines at all, and what is kept of their answers."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_support import Answer, Engine, Fault, Handler, npy_base64, recorded_answers, serving

from moe_core.client import Asking, Limits, trace_server
from moe_core.client.kept_answers import kept_beside
from moe_core.data.document import Document
from moe_core.errors import DataError, MoescopeError, ServerError, TraceError, UsageError
from moe_core.routing import RoutingTrace

QUICK = Limits(seconds=20, first_pause=0.001, attempts=4)


@pytest.fixture
def engine() -> Engine:
    return Engine(recorded_answers("serve_many"))


@pytest.fixture
def address(engine: Engine) -> Iterator[str]:
    with serving(engine) as found:
        yield found


def ask(address: str, server: Engine, to: Path, limits: Limits = QUICK, **asking: Any) -> bytes:
    """The bytes of the trace of all the engine knows."""
    documents = [Document(text, "all", text, "") for text in server.answers]
    trace_server(address, documents, to, asking=Asking(**asking), limits=limits, num_experts=8)
    return to.read_bytes()


def status(code: int, answer: Any = b"", **headers: str) -> Fault:
    def fault(handler: Handler) -> bool:
        handler.send(code, answer, **headers)
        return True

    return fault


def cut(handler: Handler) -> bool:
    """The connection ends within the answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True
    return True


def endless(part: bytes, pause: float) -> Fault:
    """Parts of an answer without an end, until the client goes."""

    def fault(handler: Handler) -> bool:
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(100_000):
                handler.wfile.write(part)
                time.sleep(pause)
        handler.close_connection = True
        return True

    return fault


def silent(handler: Handler) -> bool:
    """No answer until the client goes."""
    with contextlib.suppress(OSError):
        handler.rfile.read(1)
    handler.close_connection = True
    return True


def test_a_server_that_is_busy_or_away_is_asked_again(engine: Engine, address: str, tmp_path: Path) -> None:
    whole = ask(address, engine, tmp_path / "whole.parquet")
    asked = len(engine.asked)
    past = "Wed, 21 Oct 2015 07:28:00 GMT"
    engine.faults = [status(503), cut, status(429, Retry_After="0"), status(503, Retry_After=past), cut]
    assert ask(address, engine, tmp_path / "x.parquet", Limits(seconds=20, first_pause=0.001)) == whole
    assert len(engine.asked) == 2 * asked


def test_a_pause_that_the_server_asks_for_is_kept(engine: Engine, address: str, tmp_path: Path) -> None:
    began = time.monotonic()
    engine.faults = [status(503, Retry_After="0.4")]
    ask(address, engine, tmp_path / "x.parquet")
    assert time.monotonic() - began >= 0.4


def first_only(change: Callable[[Answer], Answer]) -> Callable[[Answer], Answer]:
    """All answers as they are but the first."""
    left = [change]
    return lambda answer: left.pop()(answer) if left else answer


def without_routing(answer: Answer) -> Answer:
    answer["choices"][0]["routed_experts"] = None
    return answer


def with_experts(make: Callable[[int], Any]) -> Callable[[Answer], Answer]:
    """Other routing for so many rows."""

    def change(answer: Answer) -> Answer:
        rows = len(answer["choices"][0]["prompt_token_ids"])
        answer["choices"][0]["routed_experts"] = npy_base64(make(rows))
        return answer

    return change


CACHED = with_experts(lambda rows: np.array([[[0, 0]] * 4] * 5 + [[[1, 2]] * 4] * (rows - 5), dtype=np.uint8))
LONG = {"error": {"message": "This model's maximum context length is 128 tokens.", "code": 400}}


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ([status(503)] * 4, ("could not be asked, 4 times in a row (status 503)", "see whether the server still runs")),
        ([cut] * 4, ("document 0", "4 times in a row")),
        ([status(503, Retry_After="99999")], ("asks to come back in 99,999 seconds",)),
        ([status(500, {"error": {"message": "boom\n"}})], ("document 0 (text 0)", "status 500, 'boom'")),
        ([status(200, b"<html>Welcome</html>")], ("answers no JSON but '<html>Welcome</html>'", "check address")),
        ([status(200, b"data: {}\n\n")], ("answers no JSON",)),
        ([status(200, [1])], ("the answer to document 0 is list",)),
        ([status(200, {"choices": []})], ("has no routed_experts; start the server with --enable-return-routed",)),
        ([status(200, {"choices": "x"})], ("choices is str",)),
        ([status(200, b"[" * 100_000)], ("answers no JSON",)),
        ([status(200, b"1" * 5_000)], ("answers no JSON",)),
        ([status(400, LONG)], ("longer than the server's context of 128 tokens", "--incomplete keep")),
        ([status(401, {"detail": "no"})], ("status 401, 'no'", "--api-key-from")),
        ([status(302, Location="http://127.0.0.2/x")], ("redirects to http://127.0.0.2", "only redirects within")),
        ([status(307, Location="file:///etc/passwd")], ("redirects to file://",)),
        ([status(307, Location="http://x:y/")], ("which is no address",)),
        ([status(307, Location="/v1/completions")] * 9, ("redirects more than 3 times",)),
        ([endless(b" " * 4096, 0)], ("more than 1 MiB", "the routing of one text")),
        ([status(200, b"", Content_Length=str(2**40))], ("more than 1 MiB",)),
    ],
)
def test_what_no_engine_answers_is_one_line(
    faults: list[Fault], words: tuple[str, ...], engine: Engine, address: str, tmp_path: Path
) -> None:
    engine.faults = faults
    limits = Limits(seconds=60, first_pause=0.001, attempts=4, most_bytes=1 << 20)
    with pytest.raises((ServerError, TraceError)) as raised:
        ask(address, engine, tmp_path / "x.parquet", limits)
    assert "\n" not in str(raised.value)
    for word in words:
        assert word in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_an_answer_is_no_longer_than_its_text_can_need(engine: Engine, address: str, tmp_path: Path) -> None:
    """6 bytes of text are 6 tokens at most, and one is written."""
    engine.faults = [status(200, b"", Content_Length=str((1 << 20) + 7 * (32 << 10) + 1))]
    with pytest.raises(ServerError, match="answers with more than 1 MiB"):
        ask(address, engine, tmp_path / "x.parquet")


@pytest.mark.parametrize("fault", [endless(b" ", 0.02), silent], ids=["trickles", "says nothing"])
def test_an_answer_has_its_time(fault: Fault, engine: Engine, address: str, tmp_path: Path) -> None:
    engine.faults = [fault]
    with pytest.raises(ServerError, match=r"did not finish its answer within 0.5 seconds; .* \(--timeout\)"):
        ask(address, engine, tmp_path / "x.parquet", Limits(seconds=0.5))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_routing, "has no routed_experts; start the server with --enable-return-routed-experts"),
        (CACHED, "5 tokens of document 0 come without routing, as from a prefix cache; start the server without one"),
        (with_experts(lambda rows: np.ones((rows - 3, 4, 2), np.uint8)), "3 tokens of document 0 come without routing"),
        (with_experts(lambda rows: np.ones((rows, 3, 2), np.uint8)), "has 4 layers with 2 slots, that to document 0 3"),
        (with_experts(lambda rows: np.full((rows, 4, 2), 9, np.uint8)), "expected an expert id from 0 to 7"),
        (with_experts(lambda rows: np.zeros((rows + 5, 4, 2), np.uint8)), "rows of routed_experts for"),
    ],
)
def test_routing_that_cannot_be_is_refused(
    change: Callable[[Answer], Answer], words: str, engine: Engine, address: str, tmp_path: Path
) -> None:
    engine.change = first_only(change)
    with pytest.raises((ServerError, TraceError), match=words):
        ask(address, engine, tmp_path / "x.parquet")


def test_sglang_that_stopped_before_the_last_token_is_refused(engine: Engine, address: str, tmp_path: Path) -> None:
    def aborted(answer: Answer) -> Answer:
        rows = len(answer["choices"][0]["prompt_token_ids"]) - 1
        answer["choices"][0]["routed_experts"] = npy_base64(np.full((rows, 4, 2), [1, 2], np.int32))
        return answer

    engine.models[0]["owned_by"] = "sglang"
    engine.sglang_top_k, engine.completes = 2, False
    engine.change = aborted
    documents = [Document(text, "all", text, "") for text in engine.answers]
    with pytest.raises(ServerError, match="1 tokens of document 0 come without routing"):
        trace_server(address, documents, tmp_path / "x.parquet", top_k=2)


def test_what_a_cache_swallowed_is_left_out_on_request(engine: Engine, address: str, tmp_path: Path) -> None:
    ask(address, engine, tmp_path / "w.parquet")
    whole = RoutingTrace.load(tmp_path / "w.parquet")
    engine.change = first_only(CACHED)
    ask(address, engine, tmp_path / "x.parquet", incomplete="keep")
    trace = RoutingTrace.load(tmp_path / "x.parquet")
    assert trace.num_tokens == whole.num_tokens - 5
    assert int(trace.positions[0]) == 5
    assert "5 tokens without recorded routing are left out" in trace.source


def test_of_a_text_that_is_too_long_the_beginning_is_read_on_request(
    engine: Engine, address: str, tmp_path: Path
) -> None:
    engine.models[0]["max_model_len"] = 8
    engine.faults = [status(400, LONG)]
    ask(address, engine, tmp_path / "x.parquet", incomplete="keep")
    ids = engine.answers["text 0"]["choices"][0]["prompt_token_ids"]
    assert engine.asked[0] == ids[:7]
    trace = RoutingTrace.load(tmp_path / "x.parquet")
    assert trace.token_ids[trace.document_ids == 0].tolist() == ids[:7]
    assert "of 1 text only the beginning was read" in trace.source


def test_what_was_kept_whole_serves_a_command_that_takes_beginnings_too(
    engine: Engine, address: str, tmp_path: Path
) -> None:
    """The error proposes --incomplete keep: the same command with it goes on. Back again it is refused."""
    engine.models[0]["max_model_len"] = 8
    path = tmp_path / "x.parquet"
    engine.faults = [*stopped_after(3)[:3], status(400, LONG)]
    with pytest.raises(ServerError, match="3 of 12 answers are kept"):
        ask(address, engine, path, concurrency=1)
    engine.faults = [status(400, LONG), *stopped_after(2)]
    with pytest.raises(ServerError, match="5 of 12 answers are kept"):
        ask(address, engine, path, incomplete="keep", concurrency=1)
    with pytest.raises(ServerError, match="read the beginning of document 3 alone, as --incomplete keep says"):
        ask(address, engine, path)
    ask(address, engine, path, incomplete="keep")
    assert "of 1 text only the beginning was read" in RoutingTrace.load(path).source


def test_no_more_questions_at_once_than_allowed_and_the_first_alone(
    engine: Engine, address: str, tmp_path: Path
) -> None:
    """The barrier opens when three questions wait at it: three there are, and never a fourth."""
    together = threading.Barrier(3)

    def alone(handler: Handler) -> bool:
        assert handler.engine.most_at_once == 1
        return False

    def wait(handler: Handler) -> bool:  # noqa: ARG001 - a fault takes it
        together.wait(timeout=60)
        return False

    engine.faults = [alone, wait, wait, wait]
    ask(address, engine, tmp_path / "x.parquet", concurrency=3)
    assert engine.most_at_once == 3


def stopped_after(number: int) -> list[Fault]:
    """The server fails for good after so many answers."""
    return [lambda handler: False] * number + [status(500)]  # noqa: ARG005 - a fault takes it


def test_a_command_that_failed_goes_on_where_it_was(engine: Engine, address: str, tmp_path: Path) -> None:
    whole = ask(address, engine, tmp_path / "whole.parquet")
    engine.asked.clear()
    path = tmp_path / "x.parquet"
    engine.faults = stopped_after(5)
    with pytest.raises(ServerError, match=r"5 of 12 answers are kept in .*: the same command goes on from there"):
        ask(address, engine, path, concurrency=1)
    kept = kept_beside(path)
    kept.write_bytes(kept.read_bytes() + b'{"document": 7, "answer": {"choi')  # a kill within a write
    engine.faults = stopped_after(2)
    with pytest.raises(ServerError, match="7 of 12 answers are kept"):
        ask(address, engine, path, concurrency=1)
    assert ask(address, engine, path) == whole
    assert sorted(engine.asked) == sorted(engine.answers)
    assert not kept.exists()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda lines: [*lines[:2], b'{"document":\n', *lines[2:]], TraceError, "damaged at line 3; remove the file"),
        (lambda lines: [b"null\n", *lines[1:]], TraceError, "damaged at line 1"),
        (lambda lines: [*lines, b'{"document": 99, "answer": {}}\n'], TraceError, "damaged at line 5"),
        (lambda lines: [*lines, b'{"document": "1", "answer": {}}\n'], TraceError, "damaged at line 5"),
        (lambda lines: [*lines, b'{"document": 3, "answer": {}}\n'], TraceError, "has no routed_experts"),
        (lambda lines: [lines[0].replace(b"demo", b"memo")], UsageError, "model 'memo', now 'demo'"),
    ],
)
def test_kept_answers_that_are_damaged_or_to_another_question_are_refused(
    change: Callable[[list[bytes]], list[bytes]],
    error: type[MoescopeError],
    words: str,
    engine: Engine,
    address: str,
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.parquet"
    engine.faults = stopped_after(3)
    with pytest.raises(ServerError):
        ask(address, engine, path, concurrency=1)
    kept = kept_beside(path)
    changed = b"".join(change(kept.read_bytes().splitlines(keepends=True)))
    kept.write_bytes(changed)
    with pytest.raises(error, match=words):
        ask(address, engine, path)
    assert kept.read_bytes() == changed


def test_two_commands_do_not_write_the_same_trace(engine: Engine, address: str, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    refused: list[str] = []

    def second(handler: Handler) -> bool:  # noqa: ARG001 - a fault takes it
        with pytest.raises(UsageError) as raised:
            ask(address, engine, path)
        refused.append(str(raised.value))
        return False

    engine.faults = [second]
    ask(address, engine, path)
    assert len(refused) == 1
    assert "another command is asking for the same trace" in refused[0]


def test_a_server_that_gives_no_text_of_tokens_is_noted(engine: Engine, address: str, tmp_path: Path) -> None:
    engine.detokenizes = False
    ask(address, engine, tmp_path / "x.parquet")
    trace = RoutingTrace.load(tmp_path / "x.parquet")
    assert "the server gives no text of its tokens: --tokenizer does" in trace.source
    assert not trace.vocabulary


def test_nothing_listens(tmp_path: Path) -> None:
    with serving(Engine({})) as gone:
        pass
    with pytest.raises(ServerError, match=r"no server answers at http://127.*; start it, or check host and port"):
        trace_server(gone, [Document("x", "all", "x", "")], tmp_path / "x.parquet")


def test_a_text_that_is_none_is_refused_before_anything_is_asked(engine: Engine, address: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="U\\+D800"):
        trace_server(address, [Document("a\ud800", "all", "x", "")], tmp_path / "x.parquet")
    assert not engine.paths


def test_a_wrong_path_is_named(engine: Engine, address: str, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"/llm/v1/models answers status 404, 'Not Found'; expected the address of"):
        ask(f"{address}/llm", engine, tmp_path / "x.parquet")


@pytest.mark.parametrize(
    "variable", [("ALL_PROXY", "gopher://x"), ("ALL_PROXY", "http://x:y"), ("SSL_CERT_FILE", "no")]
)
def test_a_proxy_that_cannot_be_used_is_named(
    variable: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*variable)
    with pytest.raises(UsageError, match=r"cannot be used .* NO_PROXY"):
        trace_server("https://example.org", [Document("x", "all", "x", "")], tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("models", "asking", "words"),
    [
        ([], {}, r"the server has 0 models \(none\)"),
        ([{"id": "a"}, {"id": "b"}], {}, r"2 models \('a', 'b'\); say with --model which"),
        ([{"id": "a"}], {"model": "b"}, "no model 'b'; expected one of 'a'"),
        ([{"name": "a"}], {}, "lists no models"),
        ([{"id": "a"}], {"engine": "x"}, "expected one of auto, vllm, sglang"),
        ([{"id": "a"}], {"concurrency": 0}, "at least 1"),
    ],
)
def test_models_and_arguments_that_do_not_fit(
    models: list[Answer], asking: dict[str, Any], words: str, engine: Engine, address: str, tmp_path: Path
) -> None:
    engine.models = models
    with pytest.raises(MoescopeError, match=words):
        ask(address, engine, tmp_path / "x.parquet", **asking)


def test_kept_lines_hold_the_answers_as_they_came(engine: Engine, address: str, tmp_path: Path) -> None:
    engine.faults = stopped_after(1)
    with pytest.raises(ServerError):
        ask(address, engine, tmp_path / "x.parquet", concurrency=1)
    first, second = kept_beside(tmp_path / "x.parquet").read_text(encoding="utf-8").splitlines()
    assert json.loads(first)["question"]["engine"] == "vllm"
    assert json.loads(second) == {"document": 0, "answer": engine.vllm_answer("text 0", 1)}
