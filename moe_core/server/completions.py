"""POST /v1/completions: text or token ids in, choices out, whole or as they are written."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from moe_core.inference.engine import Finished, GeneratedToken, PromptRead, TokensAsText
from moe_core.server.answering import Answering, Arrived
from moe_core.server.writing import Writing

Json = dict[str, Any]
DONE = b"data: [DONE]\n\n"


class CompletionAnswer:
    """One answer."""

    def __init__(self, writing: Writing, name: str) -> None:
        self._writing = writing
        self._head: Json = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": name,
        }
        self._written = 0

    async def whole(self, answering: Answering) -> Json:
        """All of it."""
        texts = [""] * len(self._writing.requests)
        reasons = [""] * len(texts)
        async for arrived in answering.arrivals():
            text, reason = self._take(arrived)
            texts[arrived.choice] += text
            reasons[arrived.choice] = reason or reasons[arrived.choice]
        choices = [
            {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
            for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        return {**self._head, "choices": choices, "usage": self._usage()}

    async def pieces(self, answering: Answering, *, include_usage: bool) -> AsyncIterator[bytes]:
        """Server-sent events."""
        async for arrived in answering.arrivals():
            text, reason = self._take(arrived)
            if text or reason:
                choice = {"index": arrived.choice, "text": text, "logprobs": None, "finish_reason": reason}
                yield event({**self._head, "choices": [choice]})
        if include_usage:
            yield event({**self._head, "choices": [], "usage": self._usage()})
        yield DONE

    def _take(self, arrived: Arrived) -> tuple[str, str | None]:
        text, reason = "", None
        for one in arrived.events:
            if isinstance(one, GeneratedToken):
                self._written += 1
            elif isinstance(one, TokensAsText):
                self._written += len(one.token_ids)
            elif isinstance(one, Finished):
                reason = "length" if one.reason == "length" else "stop"
            if not isinstance(one, PromptRead):
                text += one.text
        return text, reason

    def _usage(self) -> Json:
        prompt = sum(map(len, self._writing.prompts))
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._written,
            "total_tokens": prompt + self._written,
        }


def event(content: Json) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
