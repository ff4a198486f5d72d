"""Requests to the engine: prompt positions with their experts, stop strings, and cancelling from another thread."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_inference_tracing import Loaded, tiny_loaded

from moe_core.errors import UsageError
from moe_core.inference import huggingface
from moe_core.inference.engine import Engine, Finished, GeneratedToken, PromptRead, Request
from moe_core.inference.job import GenerationJob
from moe_core.inference.open import language_model
from moe_core.inference.protocol import LanguageModel
from moe_core.inference.sampling import SamplingConfig
from moe_core.inference.stop_strings import StopStrings
from moe_core.inference.tracing import trace_text
from moe_core.routing import Intervention

LONG = SamplingConfig(max_new_tokens=40, temperature=1.0, seed=5)


@pytest.fixture(scope="module")
def roomy() -> Loaded:
    """A tiny model said to be trained on 64 tokens."""
    loaded = tiny_loaded()
    training = loaded.config.training.model_copy(update={"seq_len": 64})
    return replace(loaded, config=loaded.config.model_copy(update={"training": training}))


@pytest.fixture(scope="module")
def foreign() -> LanguageModel:
    support = pytest.importorskip("huggingface_support", reason="transformers is missing: `make test` installs it")
    model = support.Foreign(support.tiny_model("qwen3_moe"), support.trained_tokenizer("byte-level"), "some/qwen")
    return language_model(model)


@pytest.fixture(params=["ours", "transformers"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return language_model(
        request.getfixturevalue("roomy") if request.param == "ours" else request.getfixturevalue("foreign")
    )


def test_prompt_positions_and_new_tokens_have_the_experts_of_the_whole_texts_trace(model: LanguageModel) -> None:
    events = list(Engine(model).start(Request("The café", replace(LONG, max_new_tokens=8))))
    prompt, tokens = events[0], [event for event in events if isinstance(event, GeneratedToken)]
    assert isinstance(prompt, PromptRead)
    assert isinstance(events[-1], Finished)
    assert prompt.token_ids == (model.tokenizer.end_of_text, *model.tokenizer.encode("The café"))
    assert prompt.experts.shape == (len(prompt.token_ids), len(model.moe_layers), model.top_k)
    assert prompt.experts.shape == prompt.scores.shape
    trace = trace_text(model, "The café").trace
    np.testing.assert_array_equal(prompt.experts, trace.router_indices.swapaxes(0, 1))
    np.testing.assert_allclose(prompt.scores, trace.router_scores.swapaxes(0, 1), atol=1e-5)
    again = next(iter(Engine(model).start(Request((*prompt.token_ids, *(t.token_id for t in tokens))))))
    assert isinstance(again, PromptRead)
    np.testing.assert_array_equal(again.experts[len(prompt.token_ids) :], [token.experts for token in tokens])


@given(
    text=st.text("abc", max_size=24),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 24), max_size=6),
)
@settings(max_examples=300, deadline=None)
def test_a_text_ends_before_the_first_complete_stop_string_wherever_it_is_cut(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    expected = text[: min(ends)[1]] if ends else text
    borders = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    watcher, shown, stopped = StopStrings(stops), "", False
    for start, end in pairwise(borders):
        piece, stopped = watcher.add(text[start:end])
        shown += piece
        assert expected.startswith(shown), "what was shown is never taken back"
        if stopped:
            break
    assert stopped == bool(ends)
    assert shown + ("" if stopped else watcher.rest()) == expected


def test_a_stop_string_may_span_tokens_and_no_part_of_it_is_shown(model: LanguageModel) -> None:
    whole = Engine(model).start(Request("The", LONG)).result()
    texts = [token.text for token in whole.tokens]
    first = next(i for i in range(1, len(texts) - 1) if texts[i] and texts[i + 1] and texts[i].isascii())
    stop = texts[first][-1] + texts[first + 1][:1]
    found = Engine(model).start(Request("The", LONG, stop=("never written", stop))).result()
    assert found.reason == "stop"
    assert found.text == whole.text[: whole.text.index(stop)]
    shown = ""
    for event in Engine(model).start(Request("The", LONG, stop=(stop,))):
        shown += event.text if isinstance(event, GeneratedToken | Finished) else ""
        assert found.text.startswith(shown)
    tokens = len(found.tokens)
    assert [t.token_id for t in found.tokens] == [t.token_id for t in whole.tokens[:tokens]]


def test_a_stop_string_that_never_comes_changes_no_character(model: LanguageModel) -> None:
    whole = Engine(model).start(Request("The", LONG)).result()
    held = whole.text[-2:] + "§"
    assert Engine(model).start(Request("The", LONG, stop=(held,))).result().text == whole.text


def test_the_likeliest_tokens_at_each_place_are_told_with_their_probabilities(model: LanguageModel) -> None:
    request = Request("The", replace(LONG, max_new_tokens=5), likeliest=3)
    tokens = Engine(model).start(request).result().tokens
    ids = [model.tokenizer.end_of_text, *model.tokenizer.encode("The"), *(token.token_id for token in tokens)]
    with torch.inference_mode():
        expected = model.logits(torch.tensor([ids]))[0].double().log_softmax(-1).topk(3)
    for at, token in enumerate(tokens, start=len(ids) - len(tokens) - 1):
        assert [token_id for token_id, _ in token.likeliest] == expected.indices[at].tolist()
        assert [log_p for _, log_p in token.likeliest] == pytest.approx(expected.values[at].tolist(), abs=1e-4)
        assert dict(token.likeliest).get(token.token_id, -token.loss) == pytest.approx(-token.loss)
    assert Engine(model).start(replace(request, likeliest=0)).result().tokens[0].likeliest == ()
    with pytest.raises(UsageError, match="likeliest = -1 is out of range"):
        replace(request, likeliest=-1)


@pytest.mark.parametrize("stop", ["a.", ("", "x"), ("x", ""), (1,)])
def test_stop_strings_that_could_not_work_are_refused(stop: Any) -> None:
    with pytest.raises(UsageError, match="expected a tuple of strings"):
        Request("The", stop=stop)


def test_cancelling_from_another_thread_ends_within_the_token_that_is_under_way(model: LanguageModel) -> None:
    generation = Engine(model).start(Request("The", replace(LONG, max_new_tokens=10_000)))
    tokens = 0
    for event in generation:
        tokens += isinstance(event, GeneratedToken)
        if tokens == 3:
            canceller = threading.Thread(target=generation.cancel)
            canceller.start()
            canceller.join()
            break
    rest = list(generation)
    assert len(rest) == 1
    assert isinstance(rest[0], Finished)
    assert rest[0].reason == "cancelled"


def test_a_request_cancelled_before_it_began_computes_nothing(model: LanguageModel) -> None:
    generation = Engine(model).start(Request("The", LONG))
    generation.cancel()
    assert generation.result().reason == "cancelled"


def test_a_job_is_stopped_by_cancelling(roomy: Loaded) -> None:
    job = GenerationJob(roomy, "The", replace(LONG, max_new_tokens=1_000_000))
    while len(job.written) < 2:
        job.wait(0.01)
    job.stop()
    job.wait(60)
    assert not job.is_running
    assert job.was_stopped
    job.raise_error()


def hooks(model: LanguageModel) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.model.modules())


def test_a_transformers_model_decodes_under_one_capture_and_keeps_no_hook(
    foreign: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    capture = huggingface.capture

    def counted(*arguments: Any, **options: Any) -> Any:
        opened.append(arguments)
        return capture(*arguments, **options)

    monkeypatch.setattr(huggingface, "capture", counted)
    before = hooks(foreign)
    assert len(Engine(foreign).start(Request("The", replace(LONG, max_new_tokens=12))).result().tokens) > 1
    assert len(opened) == 1
    assert hooks(foreign) == before
    halfway = Engine(foreign).start(Request("The", LONG))
    for _ in range(3):
        next(halfway)
    assert hooks(foreign) > before
    halfway.close()
    assert hooks(foreign) == before


def test_two_requests_at_once_do_not_mix(model: LanguageModel) -> None:
    """Taking turns token by token, one of them under an intervention, gives what each gives alone."""
    layer = int(model.moe_layers[0])
    changed = Intervention(ablate=((layer, 0), (layer, 1)), mode="reroute")
    requests = [Request("The", LONG), Request("Der Rest", LONG, intervention=changed)]
    alone = [Engine(model).start(request).result() for request in requests]
    running = [Engine(model).start(request) for request in requests]
    tokens: list[list[GeneratedToken]] = [[], []]
    while any(turn := [next(generation, None) for generation in running]):
        for found, event in zip(tokens, turn, strict=True):
            found += [event] if isinstance(event, GeneratedToken) else []
    for one, found in zip(alone, tokens, strict=True):
        assert [token.token_id for token in found] == [token.token_id for token in one.tokens]
        for mine, theirs in zip(found, one.tokens, strict=True):
            np.testing.assert_array_equal(mine.experts, theirs.experts)


def test_the_command_tells_the_prompts_experts_and_ends_before_the_stop_string(
    trained_root: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    arguments = ("generate", "--run", "tiny", "--prompt", "the party", "--max-new-tokens", "20", "--seed", "2")
    whole = json.loads(cli(trained_root, *arguments, "--json")[1])
    assert len(whole["prompt_tokens"]) > 1
    assert "".join(token["text"] for token in whole["prompt_tokens"][1:]).strip().startswith("the")
    assert all(len(layer) == 2 for token in whole["prompt_tokens"] for layer in token["experts"])
    stop = whole["text"][5:8]
    code, out, _ = cli(trained_root, *arguments, "--stop", stop, "--json")
    assert code == 0
    assert json.loads(out)["text"] == whole["text"][: whole["text"].index(stop)]
    code, _, error = cli(trained_root, *arguments, "--stop", "")
    assert code == 2
    assert "stop" in error
