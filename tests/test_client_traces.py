"""Traces of a server that answers as the recordings do: they equal what the recordings themselves give."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from engine_support import RECORDINGS, Engine, recorded_answers, serving

from moe_core.client import Asking, Limits, trace_server
from moe_core.data.document import Document
from moe_core.routing import RoutingTrace, recordings

QUICK = Limits(seconds=20, first_pause=0.001)


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
