"""OpenAI's own client against our API: what it asks is answered, and its errors are the ones that it knows."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from api_support import Served

from moe_core.inference.engine import Engine, Request
from moe_core.inference.requests import prompt_ids
from moe_core.inference.sampling import SamplingConfig

openai = pytest.importorskip("openai", reason="openai is missing: `make test` installs it")
HELLO = [{"role": "user", "content": "Hi"}]


def alone(api: Served, prompt: str, *, tokens: int, seed: int, temperature: float = 1.0) -> Any:
    sampling = SamplingConfig(max_new_tokens=tokens, temperature=temperature, seed=seed, top_k=0, top_p=1)
    return Engine(api.scheduler.engine.model).start(Request(prompt, sampling)).result()


def test_a_completion_is_what_the_engine_writes(api: Served) -> None:
    client = api.client()
    found = client.completions.create(model="tiny", prompt="The", seed=7, max_tokens=12)
    expected = alone(api, "The", tokens=12, seed=7)
    assert found.choices[0].text == expected.text
    ended = expected.reason == "end of text"
    assert found.choices[0].finish_reason == ("stop" if ended else "length")
    assert found.object == "text_completion"
    assert found.model == "tiny"
    read = len(prompt_ids(api.scheduler.engine.model, "The"))
    written = len(expected.tokens) + ended
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (read, written)
    assert found.usage.total_tokens == read + written


def test_a_stream_gives_the_same_text_the_usage_and_the_end(api: Served) -> None:
    client = api.client()
    asked: dict[str, Any] = {"model": "tiny", "prompt": ["The", "def f"], "seed": 7, "max_tokens": 9, "n": 2}
    whole = client.completions.create(**asked)
    texts, reasons, last = [""] * 4, [""] * 4, None
    for piece in client.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        for choice in piece.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
        last = piece
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert len(set(texts)) > 1
    assert last is not None
    assert not last.choices
    assert last.usage == whole.usage
    assert texts[1] == alone(api, "The", tokens=9, seed=8).text, "each choice of a prompt has a seed of its own"


def test_a_chat_with_a_base_model_continues_a_transcript_and_says_so(api: Served) -> None:
    client = api.client()
    asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "seed": 3, "max_completion_tokens": 5}
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.role == "assistant"
    assert whole.object == "chat.completion"
    assert whole.moescope["base_model"] is True
    assert "not trained to answer" in whole.moescope["note"]
    pieces = list(client.chat.completions.create(**asked, stream=True))
    assert pieces[0].choices[0].delta.role == "assistant"
    assert pieces[0].moescope == whole.moescope
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == whole.choices[0].message.content
    assert text == text.lstrip()
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert all(piece.object == "chat.completion.chunk" and piece.id == pieces[0].id for piece in pieces)
    parts = [{"role": "developer", "content": [{"type": "text", "text": "a"}]}, *HELLO]
    roles = client.chat.completions.create(model="tiny", messages=parts, max_tokens=1)
    assert roles.usage.prompt_tokens > whole.usage.prompt_tokens


def test_the_default_of_a_chat_is_all_that_the_context_holds(api: Served) -> None:
    found = api.client().chat.completions.create(model="tiny", messages=HELLO, temperature=0, seed=0)
    if found.choices[0].finish_reason == "length":
        assert found.usage.total_tokens == 32
    else:
        assert found.usage.total_tokens <= 32


def test_log_probabilities_in_both_shapes_are_those_of_the_engine(api: Served) -> None:
    client = api.client()
    model = api.scheduler.engine.model
    sampling = SamplingConfig(max_new_tokens=4, temperature=0, top_k=0, top_p=1)
    expected = Engine(model).start(Request("The", sampling, likeliest=3)).result().tokens
    shape = client.completions.create(model="tiny", prompt="The", temperature=0, max_tokens=4, logprobs=3)
    found = shape.choices[0].logprobs
    assert found.tokens == [model.tokenizer.token_text(token.token_id) for token in expected]
    assert found.token_logprobs == pytest.approx([-token.loss for token in expected], abs=1e-5)
    for chances, token, logprob in zip(found.top_logprobs, expected, found.token_logprobs, strict=True):
        assert list(chances) == [model.tokenizer.token_text(token_id) for token_id, _ in token.likeliest]
        assert max(chances.values()) == logprob, "greedy: equal to the bit, as lm-eval compares them"
    assert found.text_offset == [sum(map(len, found.tokens[:place])) for place in range(4)]
    chat = client.chat.completions.create(
        model="tiny", messages=HELLO, temperature=0, max_tokens=3, logprobs=True, top_logprobs=2
    )
    entries = chat.choices[0].logprobs.content
    assert len(entries) == chat.usage.completion_tokens
    for entry in entries:
        assert [entry.token, entry.logprob] == [entry.top_logprobs[0].token, entry.top_logprobs[0].logprob]
        assert len(entry.top_logprobs) == 2
        assert isinstance(entry.bytes, list)
    pieces = list(
        client.chat.completions.create(
            model="tiny", messages=HELLO, temperature=0, max_tokens=3, logprobs=True, top_logprobs=2, stream=True
        )
    )
    streamed = [entry for piece in pieces for entry in (piece.choices[0].logprobs or _NONE).content]
    assert [entry.token for entry in streamed] == [entry.token for entry in entries]


class _NONE:
    content: tuple[Any, ...] = ()


def test_a_stop_string_ends_the_text_before_it(api: Served) -> None:
    client = api.client()
    asked: dict[str, Any] = {"model": "tiny", "prompt": "The", "temperature": 0, "max_tokens": 20}
    text = client.completions.create(**asked).choices[0].text
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    found = client.completions.create(**asked, stop=[stop, "@@@"]).choices[0]
    assert (found.text, found.finish_reason) == (text[: text.index(stop)], "stop")
    streamed = client.completions.create(**asked, stop=stop, stream=True)
    assert "".join(piece.choices[0].text for piece in streamed) == found.text


def test_echo_gives_the_prompt_with_or_without_a_word_of_its_own(api: Served) -> None:
    client = api.client()
    for tokens in (0, 1, 3):
        found = client.completions.create(model="tiny", prompt="The", echo=True, logprobs=1, max_tokens=tokens, seed=1)
        choice, usage = found.choices[0], found.usage
        assert choice.text.startswith("The")
        assert (choice.text == "The") == (tokens == 0)
        assert (usage.completion_tokens, choice.finish_reason) == (tokens, "length")
        assert len(choice.logprobs.tokens) == usage.total_tokens
        assert choice.logprobs.token_logprobs[0] is None
        assert choice.logprobs.top_logprobs[0] is None
        assert all(value < 0 for value in choice.logprobs.token_logprobs[1:])
    streamed = client.completions.create(model="tiny", prompt="The", echo=True, max_tokens=3, seed=1, stream=True)
    assert "".join(piece.choices[0].text for piece in streamed) == choice.text
    plain = client.completions.create(model="tiny", prompt="The", max_tokens=3, seed=1)
    assert "The" + plain.choices[0].text == choice.text


def test_the_asynchronous_client_reads_the_same(api: Served) -> None:
    async def ask() -> tuple[str, str, list[str]]:
        async with openai.AsyncOpenAI(base_url=f"{api.address}/v1", api_key="none", max_retries=0) as client:
            asked: dict[str, Any] = {"model": "tiny", "prompt": "The", "seed": 7, "max_tokens": 12}
            whole = await client.completions.create(**asked)
            stream = await client.completions.create(**asked, stream=True)
            text = "".join([piece.choices[0].text async for piece in stream])
            return whole.choices[0].text, text, [model.id async for model in client.models.list()]

    whole, streamed, names = asyncio.run(ask())
    assert whole == streamed == alone(api, "The", tokens=12, seed=7).text
    assert names == ["tiny"]


@pytest.mark.parametrize(
    ("asked", "kind", "code", "param"),
    [
        ({"model": "none"}, openai.NotFoundError, "model_not_found", "model"),
        ({"prompt": "x " * 100}, openai.BadRequestError, "context_length_exceeded", "prompt"),
        ({"max_tokens": 100}, openai.BadRequestError, "context_length_exceeded", "max_tokens"),
        ({"max_tokens": -1}, openai.BadRequestError, "invalid_value", "max_tokens"),
        ({"temperature": 3}, openai.BadRequestError, "invalid_value", "temperature"),
        ({"top_p": 0}, openai.BadRequestError, "invalid_value", "top_p"),
        ({"prompt": [[]]}, openai.BadRequestError, "invalid_value", "prompt"),
        ({"prompt": [999_999]}, openai.BadRequestError, "invalid_value", "prompt"),
        ({"stop": ""}, openai.BadRequestError, "invalid_value", "stop"),
        ({"n": 0}, openai.BadRequestError, "invalid_value", "n"),
        ({"n": 65, "prompt": ["a", "b"]}, openai.BadRequestError, "invalid_value", "n"),
        ({"logprobs": 21}, openai.BadRequestError, "invalid_value", "logprobs"),
        ({"suffix": "y"}, openai.BadRequestError, "unsupported", "suffix"),
        ({"frequency_penalty": 0.5}, openai.BadRequestError, "unsupported", "frequency_penalty"),
        ({"stream_options": {}}, openai.BadRequestError, "invalid_value", "stream_options"),
        ({"extra_body": {"moescope": {"ablate": [[0, 99]]}}}, openai.BadRequestError, "invalid_value", "moescope"),
        ({"extra_body": {"moescope": {"abate": []}}}, openai.BadRequestError, "invalid_value", "moescope"),
        ({"extra_body": {"routed_experts_prompt_start": 99}}, openai.BadRequestError, "invalid_value",
         "routed_experts_prompt_start"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line_with_its_field(
    api: Served, asked: dict[str, Any], kind: Any, code: str, param: str | None
) -> None:
    with pytest.raises(kind) as caught:
        api.client().completions.create(**{"model": "tiny", "prompt": "The", "max_tokens": 2, **asked})
    error = caught.value
    assert (error.code, error.param) == (code, param)
    assert "\n" not in error.body["message"]
    assert error.response.headers["x-request-id"] == error.request_id


def test_values_that_ask_for_nothing_and_unknown_fields_are_let_through(
    api: Served, caplog: pytest.LogCaptureFixture
) -> None:
    asked = {"frequency_penalty": 0, "logit_bias": {}, "suffix": None, "best_of": 1}
    with caplog.at_level("INFO"):
        found = api.client().completions.create(
            model="tiny", prompt="secret words", max_tokens=1, **asked, extra_body={"guest": 1, "a secret b": 2}
        )
    assert found.usage.completion_tokens == 1
    assert "fields that are ignored: guest and 1 more" in caplog.text
    assert "secret" not in caplog.text
