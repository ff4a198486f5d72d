"""The routing that an answer tells is our own trace's, and vLLM's readers read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from api_support import Served, array_of

from moe_core.client import Asking, trace_server
from moe_core.data.document import Document
from moe_core.errors import TraceError
from moe_core.inference.engine import Engine, Request
from moe_core.inference.requests import prompt_ids
from moe_core.inference.sampling import SamplingConfig
from moe_core.routing import Intervention, RoutingTrace, capture, intervene, recordings

TEXTS = ("The tenant", "def f(x):", "rain")
ASKED: dict[str, Any] = {
    "prompt": list(TEXTS),
    "max_tokens": 6,
    "seed": 2,
    "return_token_ids": True,
    "return_routed_experts": True,
    "return_routed_weights": True,
}


def answer(api: Served, path: str = "/v1/completions", **asked: Any) -> dict[str, Any]:
    response = httpx2.post(f"{api.address}{path}", json=asked, timeout=60)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def own_trace(api: Served, choice: dict[str, Any]) -> RoutingTrace:
    """Of the text that was read, in one pass: all tokens but the last one, which was only written."""
    return traced(api, [*choice["prompt_token_ids"], *choice["token_ids"]][:-1])


def traced(api: Served, ids: list[int]) -> RoutingTrace:
    model = api.scheduler.engine.model
    with torch.inference_mode(), capture(model.model) as recorder:
        model.logits(torch.tensor([ids]))
    return recorder.trace(token_ids=ids)


def test_converted_answers_equal_our_own_trace(api: Served, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(answer(api, **ASKED)) + "\n", encoding="utf-8")
    found = recordings.read(path, num_experts=4)
    choices = answer(api, **ASKED)["choices"]
    assert len(choices) == 3
    begin = 0
    for choice in choices:
        experts, weights = array_of(choice["routed_experts"]), array_of(choice["routed_weights"])
        tokens = len(choice["prompt_token_ids"]) + len(choice["token_ids"])
        assert experts.shape == weights.shape == (tokens - 1, 2, 2)
        assert (experts.dtype, weights.dtype) == (np.uint8, np.float32)
        expected = own_trace(api, choice)
        rows = slice(begin, begin + tokens - 1)
        begin += tokens - 1
        np.testing.assert_array_equal(found.token_ids[rows], expected.token_ids)
        np.testing.assert_array_equal(found.router_indices[:, rows], expected.router_indices)
        np.testing.assert_allclose(found.router_scores[:, rows], expected.router_scores, atol=2e-3)
        np.testing.assert_allclose(weights.transpose(1, 0, 2), expected.router_scores, atol=2e-3)
    assert begin == len(found.token_ids)


def test_trace_server_reads_our_own_api(api: Served, tmp_path: Path) -> None:
    documents = [Document(text, f"domain {number % 2}", "s", "") for number, text in enumerate(TEXTS)]
    found = trace_server(f"{api.address}/v1", documents, tmp_path / "x.parquet", num_experts=4)
    assert (found.engine, found.model) == ("vllm", "tiny")
    trace, model = RoutingTrace.load(tmp_path / "x.parquet"), api.scheduler.engine.model
    for number, text in enumerate(TEXTS):
        one, expected = trace.select(trace.document_ids == number), traced(api, prompt_ids(model, text))
        np.testing.assert_array_equal(one.token_ids, expected.token_ids)
        np.testing.assert_array_equal(one.router_indices, expected.router_indices)
        np.testing.assert_allclose(one.router_scores, expected.router_scores, atol=2e-3)
        texts = [one.token_text(place) for place in range(1, len(one.token_ids))]
        assert texts == [model.tokenizer.token_text(token_id) for token_id in expected.token_ids[1:]]
    asking = Asking(max_new_tokens=4)
    longer = trace_server(api.address, documents, tmp_path / "y.parquet", asking=asking, num_experts=4)
    assert longer.trace.tokens > found.trace.tokens
    with pytest.raises(Exception, match="longer than the server's context of 32 tokens"):
        trace_server(api.address, [Document("x " * 50, "d", "s", "")], tmp_path / "z.parquet")
    keep = Asking(incomplete="keep")
    cut = trace_server(api.address, [Document("x " * 50, "d", "s", "")], tmp_path / "z.parquet", asking=keep)
    assert cut.trace.tokens == 31


def test_an_answer_tells_no_routing_unless_it_is_asked_for(api: Served, tmp_path: Path) -> None:
    plain = answer(api, prompt="The", max_tokens=2)
    assert set(plain["choices"][0]) == {"index", "text", "logprobs", "finish_reason"}
    path = tmp_path / "answer.json"
    path.write_text(json.dumps(plain), encoding="utf-8")
    with pytest.raises(TraceError, match="no routed_experts"):
        recordings.read(path)


@pytest.mark.parametrize("start", [1, 5])
def test_the_first_rows_are_left_out_on_request(start: int, api: Served) -> None:
    asked = {**ASKED, "prompt": "The tenant"}
    whole = array_of(answer(api, **asked)["choices"][0]["routed_experts"])
    rest = answer(api, **asked, routed_experts_prompt_start=start)["choices"][0]
    np.testing.assert_array_equal(array_of(rest["routed_experts"]), whole[start:])


def test_a_streamed_answer_tells_the_same_routing_with_its_last_piece(api: Served) -> None:
    for path, asked in (
        ("/v1/completions", {**ASKED, "prompt": "The"}),
        ("/v1/chat/completions", {**ASKED, "messages": [{"role": "user", "content": "Hi"}]}),
    ):
        asked = {name: value for name, value in asked.items() if name != "prompt" or "chat" not in path}
        whole = answer(api, path, **asked)["choices"][0]
        lines = httpx2.post(f"{api.address}{path}", json={**asked, "stream": True}, timeout=60).text.split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        pieces = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines[:-2]]
        for name in ("routed_experts", "routed_weights", "prompt_token_ids", "finish_reason"):
            assert pieces[-1][name] == whole[name]
        assert [token for piece in pieces for token in piece.get("token_ids", [])] == whole["token_ids"]


@pytest.mark.parametrize("mode", ["zero", "renormalise", "reroute"])
def test_an_intervention_changes_its_request_alone(mode: Any, api: Served) -> None:
    asked = {**ASKED, "prompt": "The tenant", "temperature": 0}
    before = answer(api, **asked)
    changed = answer(api, **asked, moescope={"ablate": [[0, 1], [1, 2]], "mode": mode})
    assert changed["moescope"] == {"intervention": f"ablate 0:1, 1:2 ({mode})"}
    assert "moescope" not in before
    change = Intervention(ablate=((0, 1), (1, 2)), mode=mode)
    model = api.scheduler.engine.model
    sampling = SamplingConfig(max_new_tokens=6, temperature=0, top_k=0, top_p=1)
    expected = Engine(model).start(Request("The tenant", sampling, intervention=change)).result()
    assert changed["choices"][0]["text"] == expected.text
    experts = array_of(changed["choices"][0]["routed_experts"])
    assert not (experts[:, 0] == 1).any()
    assert not (experts[:, 1] == 2).any()
    with intervene(model.model, change):
        trace = own_trace(api, changed["choices"][0])
    np.testing.assert_array_equal(experts.astype(np.int16).transpose(1, 0, 2), trace.router_indices)
    assert answer(api, **asked)["choices"] == before["choices"]


def test_other_interventions_are_told_in_words(api: Served) -> None:
    found = answer(api, prompt="The", max_tokens=1, moescope={"force": [[0, 3]], "top_k": 1, "temperature": 2.0})
    assert found["moescope"] == {"intervention": "force 0:3, top_k 1, router temperature 2"}
    assert "moescope" not in answer(api, prompt="The", max_tokens=1, moescope={})
