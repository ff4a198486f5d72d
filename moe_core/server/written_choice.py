"""One choice of an answer, as far as it is written: its text, what was likely in it, and its way through the model."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from moe_core.inference.engine import EndToken, Event, Finished, GeneratedToken, PromptRead, TokensAsText
from moe_core.server.writing import Writing

Likeliest = tuple[tuple[int, float], ...]
Number = TypeVar("Number", np.int16, np.float32)


@dataclass(frozen=True)
class ScoredToken:
    """A token with what the model gave it."""

    token_id: int
    logprob: float | None
    """ln of its probability; None for the first token of all."""
    likeliest: Likeliest = ()


@dataclass(frozen=True)
class News:
    """What was added to a choice."""

    text: str = ""
    scored: tuple[ScoredToken, ...] = ()
    """Its tokens, where log-probabilities are asked for."""
    token_ids: tuple[int, ...] = ()
    """Those that were written."""
    finish_reason: str | None = None
    """"stop" or "length" at the end, "cancelled" of a text that was cut off; before that None."""


class WrittenChoice:
    """Takes events of the engine, gives what they add."""

    def __init__(self, writing: Writing, number: int) -> None:
        self.number = number
        self.prompt = writing.prompt_of(number)
        self.written = 0
        """Tokens, the one that ended the text included."""
        self._writing = writing
        self._shown = writing.shown
        self._experts: list[NDArray[np.int16]] = []
        self._scores: list[NDArray[np.float32]] = []
        self._is_empty = True
        """Whether nothing of the text was given out."""

    def take(self, events: Sequence[Event]) -> News:
        """What these events add."""
        text, scored, token_ids = "", list[ScoredToken](), list[int]()
        reason: str | None = None
        for event in events:
            if isinstance(event, PromptRead):
                text += self._begin(event, scored)
                continue
            if isinstance(event, Finished):
                reason = self._reason(event)
            if self._writing.max_tokens:
                text += event.text
                new = _tokens_of(event)
                token_ids += [token.token_id for token in new]
                scored += new
            if isinstance(event, GeneratedToken) and self._writing.max_tokens:
                self._keep_routing(event.experts[None], event.scores[None])
        self.written += len(token_ids)
        told = scored if self._shown.likeliest is not None else []
        return News(self._opened(text), tuple(told), tuple(token_ids), reason)

    def routed_experts(self) -> str:
        """[tokens - 1, layers, k] as vLLM sends it, less the rows that are left out: the last token was never read."""
        experts = self._rows(self._experts)
        fits = not experts.size or (experts.min() >= 0 and experts.max() < 256)
        return npy_base64(experts.astype(np.uint8) if fits else experts)

    def routed_weights(self) -> str:
        """The combine weights of the same experts, as float32."""
        return npy_base64(self._rows(self._scores))

    def _begin(self, read: PromptRead, scored: list[ScoredToken]) -> str:
        self._keep_routing(read.experts, read.scores)
        if not self._shown.echo:
            return ""
        if self._shown.likeliest is not None:
            first, *others = self.prompt
            scored.append(ScoredToken(first, None))
            scored += (
                ScoredToken(token_id, -loss, likeliest)
                for token_id, loss, likeliest in zip(others, read.losses, read.likeliest, strict=True)
            )
        return self._writing.model.tokenizer.decode(self.prompt)

    def _keep_routing(self, experts_SLK: NDArray[np.int16], scores_SLK: NDArray[np.float32]) -> None:
        if self._shown.experts:
            self._experts.append(experts_SLK)
        if self._shown.weights:
            self._scores.append(scores_SLK)

    def _rows(self, kept: Sequence[NDArray[Number]]) -> NDArray[Number]:
        tokens = len(self.prompt) + self.written
        return np.concatenate(kept)[self._shown.first_row : tokens - 1]

    def _reason(self, event: Finished) -> str:
        if event.reason == "cancelled":
            return "cancelled"
        return "length" if event.reason == "length" or not self._writing.max_tokens else "stop"

    def _opened(self, text: str) -> str:
        """The answer to a plain transcript begins with a space, which is the transcript's."""
        if self._writing.is_base_chat and self._is_empty:
            text = text.lstrip()
        self._is_empty = self._is_empty and not text
        return text


def npy_base64(array: NDArray[Any]) -> str:
    """A .npy file in base64."""
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(array), allow_pickle=False)
    return base64.b64encode(content.getvalue()).decode("ascii")


def _tokens_of(event: GeneratedToken | TokensAsText | Finished) -> list[ScoredToken]:
    if isinstance(event, TokensAsText):
        return [ScoredToken(token_id, None) for token_id in event.token_ids]
    token: GeneratedToken | EndToken | None = event.end_token if isinstance(event, Finished) else event
    return [] if token is None else [ScoredToken(token.token_id, -token.loss, token.likeliest)]
