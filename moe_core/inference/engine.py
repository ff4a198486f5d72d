"""Requests in, tokens out: write on from a prompt, and keep through which experts every token passes.

    for event in Engine(model).start(Request("The tenant shall", stop=(".",))):
        ...                                   # PromptRead, then a GeneratedToken each, then Finished

Experts and weights are [S, L, K]: S positions, L MoE layers, K slots.
"""

from __future__ import annotations

import codecs
import threading
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from moe_core.errors import UsageError
from moe_core.inference.open import language_model
from moe_core.inference.own_model import OwnModel
from moe_core.inference.protocol import LanguageModel, Loaded, Read, ReadTokens, check_token_ids
from moe_core.inference.sampling import SamplingConfig, sample
from moe_core.inference.stop_strings import StopStrings
from moe_core.routing import Intervention, intervene

Ending = Literal["end of text", "length", "stop", "cancelled"]
"""The model ended the text; max_new_tokens are written; a stop string came; somebody called cancel."""


@dataclass(frozen=True)
class Request:
    """What is to be written. Raises UsageError for an empty stop string."""

    prompt: str | tuple[int, ...]
    """Text to continue, before which the model's begin of text is put where it has one; or token ids, read as they are.
    """
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How tokens are drawn, from which seed, and how many at most."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these strings; each of at least one character."""
    intervention: Intervention | None = None
    """What is done to experts, for this request alone, while the prompt is read, too."""

    def __post_init__(self) -> None:
        given: tuple[object, ...] | str = self.stop  # whatever the annotation says, a caller may hand over
        if isinstance(given, str) or not all(isinstance(stop, str) and stop for stop in given):
            raise UsageError(f"stop = {self.stop!r}; expected a tuple of strings of at least one character")


@dataclass(frozen=True, eq=False)
class PromptRead:
    """The prompt is read, as far as it fits the model's window: the last tokens of a longer one."""

    token_ids: tuple[int, ...]
    """[S] what was read, the begin of text included."""
    experts: NDArray[np.int16]
    """[S, L, K] chosen experts; -1 = unused slot."""
    scores: NDArray[np.float32]
    """[S, L, K] combine weights."""


@dataclass(frozen=True, eq=False)
class GeneratedToken:
    """One token the model wrote, and its way through the model when it was read back in."""

    token_id: int
    text: str
    """The characters that can be shown once it is there: never part of a character or of a stop string, so perhaps none
    or some of an earlier token."""
    experts: NDArray[np.int16]
    """[L, K] chosen experts per MoE layer; -1 = unused slot."""
    scores: NDArray[np.float32]
    """[L, K] combine weights."""
    loss: float
    """Nats: -ln of its probability under the model itself, at temperature 1 and without top-k or top-p."""


@dataclass(frozen=True)
class Finished:
    """The last event."""

    reason: Ending
    text: str
    """Characters that were held back because a stop string could have begun with them."""


Event = PromptRead | GeneratedToken | Finished


@dataclass(frozen=True, eq=False)
class Completion:
    """All that came of a request."""

    text: str
    tokens: tuple[GeneratedToken, ...]
    reason: Ending


class Engine:
    """A model that takes requests. Several may be under way at once, in several threads too; each has its own cache."""

    def __init__(self, loaded: Loaded | LanguageModel) -> None:
        """Raises what language_model raises, for a model that does not continue text."""
        self.model = language_model(loaded)

    def start(self, request: Request) -> Generation:
        """Check the request; nothing is computed until its events are asked for.

        The model sees the last tokens only, from half a `context_window` up to a whole one: when the cache is full, the
        later half of it is read in anew and generation goes on. A longer prompt is read from its last whole window. An
        empty prompt starts a new text. The end-of-text token is not given out, nor bytes of an unfinished character.
        Raises DataError when UTF-8 cannot hold the prompt, UsageError when the model cannot do the intervention, cannot
        begin a text of its own, or cannot write at all because its routers see the future.
        """
        model = self.model
        if isinstance(model, OwnModel):
            model.model.check_writes()
        token_ids = _prompt_ids(model, request.prompt)
        check_token_ids(model, token_ids)
        if request.intervention is not None:
            request.intervention.check(model.model)
        return Generation(model, request, token_ids)


class Generation(Iterator[Event]):
    """One request under way: iterate over its events. One thread at a time computes them, whichever asks."""

    def __init__(self, model: LanguageModel, request: Request, token_ids: list[int]) -> None:
        """Engine.start makes it."""
        self.request = request
        self._cancelled = threading.Event()
        self._events = self._generate(model, token_ids)

    def __next__(self) -> Event:
        return next(self._events)

    def cancel(self) -> None:
        """From any thread: the token that is being computed is the last one."""
        self._cancelled.set()

    def close(self) -> None:
        """Give it up, from the thread that iterates: nothing is left on the model. Deleting it does the same."""
        self._events.close()

    def tokens(self) -> Iterator[GeneratedToken]:
        """Its tokens alone, for whom their text does not matter: what is held back at the end is in Finished."""
        return (event for event in self if isinstance(event, GeneratedToken))

    def result(self) -> Completion:
        """Run to the end."""
        text = ""
        tokens: list[GeneratedToken] = []
        reason: Ending = "cancelled"
        for event in self:
            if isinstance(event, GeneratedToken):
                tokens.append(event)
            if isinstance(event, Finished):
                reason = event.reason
            if not isinstance(event, PromptRead):
                text += event.text
        return Completion(text, tuple(tokens), reason)

    def _generate(self, model: LanguageModel, token_ids: list[int]) -> Generator[Event, None, None]:
        sampling = self.request.sampling
        random = torch.Generator().manual_seed(sampling.seed)
        characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        stops = StopStrings(self.request.stop)
        reason: Ending = "length"
        if self._cancelled.is_set():
            yield Finished("cancelled", "")
            return
        with model.reading() as read:
            reader = _Reader(model, read, self.request.intervention)
            found = reader.read(token_ids)
            yield PromptRead(reader.recent, found.experts, found.scores)
            for _ in range(sampling.max_new_tokens):
                if self._cancelled.is_set():
                    reason = "cancelled"
                    break
                logits_V = found.logits.cpu().double()
                token_id = sample(logits_V, sampling, random)
                if token_id in model.end_ids:
                    reason = "end of text"
                    break
                loss = float(torch.logsumexp(logits_V, 0) - logits_V[token_id])
                found = reader.read([token_id])
                text, stopped = stops.add(characters.decode(model.tokenizer.token_bytes(token_id)))
                yield GeneratedToken(token_id, text, found.experts[-1], found.scores[-1], loss)
                if stopped:
                    reason = "stop"
                    break
        yield Finished(reason, stops.rest())


class _Reader:
    """A text in the model's cache: reads tokens in, tells what the model expects next."""

    def __init__(self, model: LanguageModel, read: Read, intervention: Intervention | None) -> None:
        self._model = model
        self._read = read
        self._intervention = intervention
        self._recent: list[int] = []
        self._cache: Any = None

    @property
    def recent(self) -> tuple[int, ...]:
        """Tokens in the cache."""
        return tuple(self._recent)

    @torch.inference_mode()
    def read(self, token_ids: list[int]) -> ReadTokens:
        """Append tokens. What does not fit the window makes the cache start anew from the later part of the text."""
        window = self._model.context_window
        new = token_ids[-window:]
        if len(self._recent) + len(new) > window:
            keep = max(window // 2, len(new))
            new = [*self._recent, *new][-keep:]
            self._recent, self._cache = [], None
        self._recent += new
        with nullcontext() if self._intervention is None else intervene(self._model.model, self._intervention):
            found = self._read(new, self._cache)
        self._cache = found.cache
        return found


def _prompt_ids(model: LanguageModel, prompt: str | tuple[int, ...]) -> list[int]:
    if not isinstance(prompt, str):
        if not prompt:
            raise UsageError("the prompt has no token ids; expected at least one, or a text")
        return list(prompt)
    begin = [] if model.tokenizer.end_of_text is None else [model.tokenizer.end_of_text]
    token_ids = [*begin, *model.tokenizer.encode(prompt)]
    if not token_ids:
        raise UsageError(f"{model.name} has no token that begins a text; expected a prompt of at least one token")
    return token_ids
