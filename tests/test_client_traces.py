"""Traces of a server that answers as the recordings do: they equal what the recordings themselves give."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from engine_support import RECORDINGS, Engine, Handler, experts_of, recorded_answers, serving
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.client import Asking, trace_server
from moe_core.client.address import redirected, server_address
from moe_core.client.checking import Checking
from moe_core.client.concurrent_questions import half_of_doubled
from moe_core.data.document import Document
from moe_core.errors import MoescopeError, ServerError, TraceError, UsageError
from moe_core.routing import RoutingTrace, recordings
from moe_core.routing.recordings.pieces import Options

ANSWER = recorded_answers("serve")["text 0"]
FIELDS = (
    *("choices", "outputs", "routed_experts", "prompt_routed_experts", "prompt_token_ids", "token_ids", "usage"),
    *("meta_info", "sglext", "prompt_tokens", "completion_tokens", "total_tokens", "routed_experts_start_len"),
    *("expert_ids_schema", "top_k", "dtype", "shape", "data", "input_token_logprobs", "output_ids", "moe_layer_ids"),
    *("input_expert_ids", "routed_weights", "routed_experts_prompt_start"),
)


@pytest.fixture
def engine() -> Engine:
    return Engine(recorded_answers("serve_many"))


@pytest.fixture
def address(engine: Engine) -> Iterator[str]:
    with serving(engine) as found:
        yield found


def documents_of(engine: Engine) -> list[Document]:
    """Two domains in turn, and a source for each three texts."""
    return [
        Document(text, f"domain {number % 2}", f"source {number // 3}", "")
        for number, text in enumerate(engine.answers)
    ]


def recorded() -> RoutingTrace:
    return recordings.read(RECORDINGS / "vllm-0.30-serve_many.jsonl", num_experts=8)


def same_routing(ours: RoutingTrace, theirs: RoutingTrace) -> bool:
    names = ("router_indices", "router_scores", "token_ids", "positions", "document_ids")
    return all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in names)


def test_a_trace_with_the_generated_tokens_equals_the_recording(engine: Engine, address: str, tmp_path: Path) -> None:
    asking = Asking(max_new_tokens=40)
    found = trace_server(address, documents_of(engine), tmp_path / "x.parquet", asking=asking, num_experts=8)
    trace = RoutingTrace.load(tmp_path / "x.parquet")
    assert same_routing(trace, recorded())
    assert (found.engine, found.model, found.resumed, found.trace.tokens) == ("vllm", "demo", 0, 684)
    assert trace.domains == ["domain 0", "domain 1"]
    assert np.array_equal(trace.domain_ids, trace.document_ids % 2)
    assert np.array_equal(trace.source_ids, trace.document_ids // 3)
    assert trace.source.startswith("vLLM routed_experts of demo, texts (no weights were recorded")
    assert trace.token_text(0) == " t0"
    assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]


def test_without_new_tokens_the_trace_holds_the_texts_alone(engine: Engine, address: str, tmp_path: Path) -> None:
    trace_server(address, documents_of(engine), tmp_path / "x.parquet", num_experts=8)
    trace, whole = RoutingTrace.load(tmp_path / "x.parquet"), recorded()
    prompts = [len(answer["choices"][0]["prompt_token_ids"]) for answer in engine.answers.values()]
    assert same_routing(trace, whole.select(whole.positions < np.array(prompts)[whole.document_ids]))
    assert np.bincount(trace.document_ids).tolist() == prompts


@pytest.mark.parametrize("native", [True, False], ids=["generate", "completions"])
@pytest.mark.parametrize("kind", ["auto", "sglang"])
@pytest.mark.parametrize("new_tokens", [0, 40])
def test_sglang_is_recognised_and_asked_in_its_own_way(
    native: bool, kind: str, new_tokens: int, engine: Engine, address: str, tmp_path: Path
) -> None:
    engine.models[0]["owned_by"] = "sglang"
    engine.sglang_top_k, engine.native = 2, native
    asking = Asking(engine=kind, max_new_tokens=new_tokens)
    found = trace_server(address, documents_of(engine), tmp_path / "x.parquet", asking=asking, num_experts=8, top_k=2)
    trace, whole = RoutingTrace.load(tmp_path / "x.parquet"), recorded()
    prompts = [len(answer["choices"][0]["prompt_token_ids"]) for answer in engine.answers.values()]
    kept = whole if new_tokens else whole.select(whole.positions < np.array(prompts)[whole.document_ids])
    assert same_routing(trace, kept)
    assert found.engine == "sglang"
    assert trace.source.startswith("SGLang routed_experts of demo")
    assert ("/generate" in engine.paths) == native


def test_sglang_without_the_number_of_slots_is_refused_after_one_answer(
    engine: Engine, address: str, tmp_path: Path
) -> None:
    engine.models[0]["owned_by"] = "sglang"
    engine.sglang_top_k = 2
    with pytest.raises(TraceError, match="say with --top-k how many"):
        trace_server(address, documents_of(engine), tmp_path / "x.parquet")
    assert len(engine.asked) == 1


@pytest.mark.parametrize("new_tokens", [0, 40])
def test_the_lists_of_vllm_up_to_0_21_are_read(new_tokens: int, engine: Engine, address: str, tmp_path: Path) -> None:
    """Routing of prompt and answer apart; the answer's last token has a row here, which is none of the text's."""

    def older(answer: dict[str, Any]) -> dict[str, Any]:
        choice = answer["choices"][0]
        prompt, experts = len(choice["prompt_token_ids"]), experts_of(answer).tolist()
        answer["prompt_routed_experts"] = experts[:prompt]
        choice["routed_experts"] = experts[prompt:] + ([[[0, 1]] * 4] if not new_tokens else [])
        return answer

    engine.change = older
    asking = Asking(max_new_tokens=new_tokens)
    trace_server(address, documents_of(engine), tmp_path / "x.parquet", asking=asking, num_experts=8)
    trace, whole = RoutingTrace.load(tmp_path / "x.parquet"), recorded()
    prompts = [len(answer["choices"][0]["prompt_token_ids"]) for answer in engine.answers.values()]
    kept = whole if new_tokens else whole.select(whole.positions < np.array(prompts)[whole.document_ids])
    assert same_routing(trace, kept)


def test_a_gateway_that_names_another_owner_is_looked_at_closer(engine: Engine, address: str, tmp_path: Path) -> None:
    engine.models[0]["owned_by"] = "someone"
    assert trace_server(address, documents_of(engine), tmp_path / "x.parquet").engine == "vllm"
    engine.sglang_top_k = 2
    assert trace_server(address, documents_of(engine), tmp_path / "y.parquet", top_k=2).engine == "sglang"


def test_one_model_of_several_is_asked(engine: Engine, address: str, tmp_path: Path) -> None:
    engine.models.append({"id": "other", "owned_by": "vllm"})
    found = trace_server(f"{address}/v1/", documents_of(engine), tmp_path / "x.parquet", asking=Asking(model="other"))
    assert found.model == "other"


def test_a_redirect_within_the_host_is_followed(engine: Engine, address: str, tmp_path: Path) -> None:
    def moved(handler: Handler) -> bool:
        handler.send(307, b"", Location="/v1/completions")
        return True

    engine.faults = [moved]
    assert trace_server(address, documents_of(engine), tmp_path / "x.parquet").trace.documents == 12


def test_no_proxy_of_the_environment_stands_before_this_machine(
    engine: Engine, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert trace_server(address, documents_of(engine), tmp_path / "x.parquet").trace.documents == 12


def test_the_key_goes_to_the_server(engine: Engine, address: str, tmp_path: Path) -> None:
    trace_server(address, documents_of(engine), tmp_path / "x.parquet", api_key="sesame")
    assert {headers["Authorization"] for headers in engine.headers} == {"Bearer sesame"}
    with pytest.raises(UsageError, match="characters that no key has") as raised:
        trace_server(address, documents_of(engine), tmp_path / "x.parquet", api_key="open\nsesame")
    assert "sesame" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "half"),
    [(" a a", " a"), ("aa", "a"), ("a a", " a"), ("  ", " "), (" ", " "), ("", ""), ("ab", "ab"), ("a b", "a b")],
)
def test_a_token_is_half_of_itself_twice(text: str, half: str) -> None:
    assert half_of_doubled(text) == half


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:8000", "expected an http or https address such as"),
        ("localhost:8000", "expected an http or https address such as"),
        ("ftp://127.0.0.1", "expected an http or https address such as"),
        ("http://", "expected an http or https address such as"),
        ("http://x:y", "is no address"),
        ("http://127.0.0.1/?a=b", "expected an http or https address such as"),
        ("", "expected an http or https address such as"),
        ("http://me:secret@127.0.0.1", "has a user name or password in it"),
    ],
)
def test_what_is_no_address_is_refused(address: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        server_address(address)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "location", "target"),
    [
        ("http://h/v1/x", "/y", "http://h/y"),
        ("http://h/v1/x", "https://h/y", "https://h/y"),
        ("https://h/v1/x", "http://h/y", None),
        ("http://h:8000/x", "http://h:9000/x", None),
        ("http://h/x", "http://h.example.org/x", None),
        ("http://h/x", "//other/x", None),
        ("http://h/x", "http://me@h/x", None),
    ],
)
def test_redirects_stay_with_their_host(url: str, location: str, target: str | None) -> None:
    if target is not None:
        assert str(redirected(httpx2.URL(url), location)) == target
        return
    with pytest.raises(ServerError, match="only redirects within a host are followed"):
        redirected(httpx2.URL(url), location)


def test_it_runs_within_an_event_loop(engine: Engine, address: str, tmp_path: Path) -> None:
    """As in a notebook."""

    async def cell() -> int:
        return trace_server(address, documents_of(engine), tmp_path / "x.parquet").trace.documents

    assert asyncio.run(cell()) == 12


Json = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70_000) | st.integers(10**15, 10**30) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=80)
@given(answer=st.dictionaries(st.sampled_from(FIELDS), Json, max_size=8))
def test_no_answer_does_more_than_raise_one_of_our_errors(answer: dict[str, Any]) -> None:
    checking = Checking([Document("x", "all", "x", "")], Options(top_k=2), prompt_only=True, complete=True)
    with suppress(MoescopeError):
        checking.check(0, answer)


@settings(max_examples=80)
@given(path=st.lists(st.integers(0, 20), max_size=4), value=Json)
def test_no_change_of_a_real_answer_does_more(path: list[int], value: Any) -> None:
    answer = json.loads(json.dumps(ANSWER))
    at: Any = answer
    for step in path:
        children = list(at) if isinstance(at, dict) else list(range(len(at))) if isinstance(at, list) else []
        if not children:
            break
        key = children[step % len(children)]
        if not isinstance(at[key], dict | list):
            at[key] = value
            break
        at = at[key]
    checking = Checking([Document("x", "all", "x", "")], Options(), prompt_only=False, complete=True)
    with suppress(MoescopeError):
        checking.check(0, answer)
