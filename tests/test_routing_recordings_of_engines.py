"""Answers of vLLM 0.30 for the shipped demo, exported with `main.py export`: read back they equal our own routing.

The engine itself made the files (tests/fixtures/recordings): its server with --enable-return-routed-experts.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from moe_core.routing import RoutingTrace, capture, recordings
from moe_core.runs.checkpoint import LoadedRun, load_run
from moe_core.runs.places import SHIPPED

FOLDER = Path(__file__).parent / "fixtures" / "recordings"


def read(name: str) -> RoutingTrace:
    return recordings.read(FOLDER / f"vllm-0.30-{name}.jsonl", num_experts=8)


def whole_texts(name: str) -> list[list[int]]:
    """The ids of every choice, prompt and answer, in order: the last one was never read."""
    lines = (FOLDER / f"vllm-0.30-{name}.jsonl").read_text(encoding="utf-8").splitlines()
    choices = [choice for line in lines for choice in json.loads(line)["choices"]]
    return [(choice["prompt_token_ids"] + choice["token_ids"])[:-1] for choice in choices]


@cache
def demo() -> LoadedRun:
    return load_run("demo", SHIPPED)


def own_choices(ids: list[int]) -> npt.NDArray[np.int16]:
    """[L,T,K] the demo's experts of one text, ascending: slots have no order of their own."""
    with torch.inference_mode(), capture(demo().model) as recorder:
        demo().model(torch.tensor([ids]))
    return np.sort(recorder.trace(token_ids=np.array(ids)).router_indices, axis=-1)


@pytest.mark.parametrize(
    ("name", "token_layers"),
    [
        ("serve", 4 * 162),
        ("serve_many", 2736),
        ("serve_long", 672),
        ("serve_echo", 48),
        ("serve_stop", 4 * 114),
        ("serve_two", 4 * 47),
        ("serve_start", 36),
        ("serve_start4", 32),
    ],
)
def test_every_token_layer_equals_our_own(name: str, token_layers: int) -> None:
    trace, texts = read(name), whole_texts(name)
    assert trace.num_tokens * trace.num_layers == token_layers
    assert len(np.unique(trace.document_ids)) == len(texts)
    for document, ids in enumerate(texts):
        of_text = trace.document_ids == document
        places = trace.positions[of_text]
        assert trace.token_ids[of_text].tolist() == [ids[place] for place in places]
        assert places.tolist() == list(range(places[0], len(ids)))
        recorded = np.sort(trace.router_indices[:, of_text], axis=-1)
        assert np.array_equal(recorded, own_choices(ids)[:, places])


def test_two_prompts_of_one_request_are_two_texts_of_two_sources() -> None:
    trace = read("serve_two")
    second = trace.document_ids == 1
    assert (int(second.sum()), int(trace.positions[second][0])) == (25, 0)
    assert sorted(set(trace.source_ids.tolist())) == [0, 1]


def test_two_answers_to_one_prompt_share_it_and_their_source() -> None:
    trace = read("serve")
    assert [int(trace.positions[trace.document_ids == document][0]) for document in range(6)] == [0, 0, 0, 0, 5, 0]
    assert [int(trace.source_ids[trace.document_ids == document][0]) for document in range(6)] == [0, 1, 2, 3, 3, 5]


@pytest.mark.parametrize(("name", "first"), [("serve_start", 3), ("serve_start4", 4)])
def test_rows_that_the_request_left_out_shift_nothing(name: str, first: int) -> None:
    trace = read(name)
    assert trace.positions.tolist() == list(range(first, 12))
    assert "the first tokens have no row" in trace.source


def test_without_ids_the_answer_has_its_routing_and_no_text() -> None:
    trace = read("serve_noids")
    assert not trace.token_ids.any()
    assert "no token ids were recorded" in trace.source
    ids = whole_texts("serve_echo")[0]  # the same request, asked for its ids
    assert np.array_equal(np.sort(trace.router_indices, axis=-1), own_choices(ids))
