"""Answers of /v1/completions and /v1/chat/completions, whole or as server-sent events while they are written."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from moe_core.errors import ShutDownError
from moe_core.inference.engine import Event
from moe_core.json_values import Json
from moe_core.server.answering import Answering
from moe_core.server.refusals import refusal_of
from moe_core.server.wire_logprobs import chat_logprobs, completion_logprobs
from moe_core.server.writing import Writing
from moe_core.server.written_choice import News, ScoredToken, WrittenChoice

logger = logging.getLogger(__name__)
DONE = b"data: [DONE]\n\n"
BASE_MODEL = (
    "this is a base model without a chat template: it was not trained to answer, and continues the conversation as a "
    "plain transcript"
)


@dataclass
class _Parts:
    """All that was written of a choice."""

    text: str = ""
    scored: list[ScoredToken] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""


class Answer:
    """One answer, given once."""

    def __init__(self, kind: Literal["text", "chat"], writing: Writing, name: str) -> None:
        """`name`: the model's, as it was asked for."""
        self._is_chat = kind == "chat"
        self._writing = writing
        self._choices = [WrittenChoice(writing, number) for number in range(len(writing.requests))]
        self._offsets = [0] * len(self._choices)
        self._head: Json = {
            "id": f"{'chatcmpl' if self._is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": name,
        }

    async def whole(self, answering: Answering) -> bytes:
        """All of it, as JSON. Raises what went wrong."""
        parts = [_Parts() for _ in self._choices]
        async for arrived in answering.arrivals():
            news, so_far = self._take(arrived.choice, arrived.events), parts[arrived.choice]
            so_far.text += news.text
            so_far.scored += news.scored
            so_far.token_ids += news.token_ids
            so_far.finish_reason = news.finish_reason or so_far.finish_reason
        choices = []
        for choice, part in zip(self._choices, parts, strict=True):
            news = News(part.text, tuple(part.scored), tuple(part.token_ids), part.finish_reason)
            said = {"message": {"role": "assistant", "content": part.text}} if self._is_chat else {"text": part.text}
            choices.append({"index": choice.number, **said, **self._beside(choice, news), **self._at_end(choice)})
        kind = "chat.completion" if self._is_chat else "text_completion"
        content = {"object": kind, **self._head, "choices": choices, "usage": self._usage(), **self._said_of_all()}
        return to_json(content)

    async def pieces(self, answering: Answering, *, include_usage: bool) -> AsyncIterator[bytes]:
        """Server-sent events. What goes wrong is the last but one of them."""
        try:
            async for piece in self._pieces(answering):
                yield event({**piece, "usage": None} if include_usage else piece)
            if include_usage:
                yield event({**self._piece_head, "choices": [], "usage": self._usage()})
        except Exception as error:
            logger.warning("an answer that had begun was cut off: %s", type(error).__name__)
            yield event(refusal_of(error).body())
        yield DONE

    async def _pieces(self, answering: Answering) -> AsyncIterator[Json]:
        if self._is_chat:
            empty: Json = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
            roles = [{"index": choice.number, **empty} for choice in self._choices]
            yield {**self._piece_head, "choices": roles, **self._said_of_all()}
        async for arrived in answering.arrivals():
            choice = self._choices[arrived.choice]
            news = self._take(arrived.choice, arrived.events)
            shows_ids = news.token_ids and self._writing.shown.token_ids
            if not (news.text or news.scored or news.finish_reason or shows_ids):
                continue
            said: Json = {"text": news.text}
            if self._is_chat:
                said = {"delta": {"content": news.text} if news.text else {}}
            end = self._at_end(choice) if news.finish_reason else {}
            piece = {"index": choice.number, **said, **self._beside(choice, news), **end}
            yield {**self._piece_head, "choices": [piece], **({} if self._is_chat else self._said_of_all())}

    @property
    def _piece_head(self) -> Json:
        return {"object": "chat.completion.chunk" if self._is_chat else "text_completion", **self._head}

    def _take(self, number: int, events: Sequence[Event]) -> News:
        news = self._choices[number].take(events)
        if news.finish_reason == "cancelled":
            raise ShutDownError("the server is being shut down: the answer was cut off")
        return news

    def _beside(self, choice: WrittenChoice, news: News) -> Json:
        """What stands beside the text."""
        shown, tokenizer = self._writing.shown, self._writing.model.tokenizer
        logprobs: Json | None = None
        if shown.likeliest is not None and self._is_chat:
            logprobs = chat_logprobs(tokenizer, news.scored)
        elif shown.likeliest is not None:
            logprobs, self._offsets[choice.number] = completion_logprobs(
                tokenizer, news.scored, shown.likeliest, self._offsets[choice.number]
            )
        found: Json = {"logprobs": logprobs, "finish_reason": news.finish_reason}
        if shown.token_ids:
            found["token_ids"] = list(news.token_ids)
        return found

    def _at_end(self, choice: WrittenChoice) -> Json:
        """What is told of a choice once it is whole."""
        found: Json = {}
        if self._writing.shown.token_ids:
            found["prompt_token_ids"] = list(choice.prompt)
        if self._writing.shown.experts:
            found["routed_experts"] = choice.routed_experts()
        if self._writing.shown.weights:
            found["routed_weights"] = choice.routed_weights()
        return found

    def _said_of_all(self) -> Json:
        """What must be known of all choices; nothing for most answers."""
        change = self._writing.requests[0].change
        said: Json = {} if change is None else {"intervention": change.describe()}
        if self._writing.is_base_chat:
            said |= {"base_model": True, "note": BASE_MODEL}
        return {"moescope": said} if said else {}

    def _usage(self) -> Json:
        prompt = sum(map(len, self._writing.prompts))
        written = sum(choice.written for choice in self._choices)
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


def to_json(content: Mapping[str, Any]) -> bytes:
    """Compact, in ASCII: clients that look for lines split them at U+2028 and its like, too."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def event(content: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + to_json(content) + b"\n\n"
