"""Answers that are being written, each in a thread of its own: they go on whoever looks, and are kept as they come.

answers = Answers(kept, pool)
answer = answers.ask(kept.say(thread, "What may the tenant do?", None), Settings("demo"))
kept.conversation(thread)                                  # its text so far, from any process
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from moe_core.conversations.store import Conversations, Progress
from moe_core.conversations.threads import Ending, Message, Settings, Writer, WrittenTokens
from moe_core.errors import MoescopeError, RunError, ShutDownError, UsageError
from moe_core.routing.instruments.change import Change
from moe_core.words import sentence

if TYPE_CHECKING:
    from moe_core.inference.chat_format import ChatPrompt
    from moe_core.inference.engine import Generation
    from moe_core.inference.model_pool import ModelPool
    from moe_core.inference.protocol import LanguageModel
    from moe_core.inference.requests import Event, GeneratedToken
    from moe_core.inference.sampling import SamplingConfig

KEEP_SECONDS = 0.5
"""After so long what was written since is kept."""
PATIENCE_SECONDS = 5.0
"""For an answer to end once it is told to stop."""
_log = logging.getLogger(__name__)


class Answers:
    """Those that this process writes. Any thread may call."""

    def __init__(self, kept: Conversations, pool: ModelPool) -> None:
        self._kept, self._pool = kept, pool
        self._lock = threading.Lock()
        self._running: dict[int, _Writing] = {}
        _all.add(self)

    def ask(
        self, question: int, settings: Settings, change: Change | None = None, compared_with: int | None = None
    ) -> int:
        """Begin the answer to a message; its id. It is there at once and grows; what goes wrong is told in it.

        `change`: what is done to experts meanwhile. `compared_with`: the answer that it stands beside.
        Raises UsageError for settings out of range, RunError if the message is gone.
        """
        sampling = sampling_of(settings)
        message = self._kept.begin_answer(question, settings, change, compared_with)
        writing = _Writing(self._kept, self._pool, message, question, settings, sampling, change)
        with self._lock:
            self._running[message] = writing
        threading.Thread(target=self._run, args=(writing,), name="answer", daemon=True).start()
        return message

    def stop(self, message: int) -> None:
        """No further token, whichever process writes it."""
        self._kept.want_stop(message)
        with self._lock:
            writing = self._running.get(message)
        if writing is not None:
            writing.stop(is_wanted=True)

    def delete(self, thread: str) -> None:
        """The thread, with what its answers left in memory. What is being written of it ends."""
        with self._lock:
            running = [writing for writing in self._running.values() if writing.thread == thread]
        for writing in running:
            writing.stop(is_wanted=True)
        for writing in running:
            writing.ended.wait(PATIENCE_SECONDS)
        self._kept.delete(thread)
        for scheduler in self._pool.open_schedulers().values():
            scheduler.engine.kept.forget(thread)

    def wait(self, seconds: float) -> None:
        """Until all have ended, at most so long."""
        until = time.monotonic() + seconds
        for writing in self._now():
            writing.ended.wait(max(0.0, until - time.monotonic()))

    def close(self) -> None:
        """End all of them; they are kept as far as they are."""
        for writing in self._now():
            writing.stop(is_wanted=False)
        self.wait(PATIENCE_SECONDS)

    def _now(self) -> list[_Writing]:
        with self._lock:
            return list(self._running.values())

    def _run(self, writing: _Writing) -> None:
        try:
            writing.run()
        finally:
            with self._lock:
                del self._running[writing.message]
            writing.ended.set()


class _Writing:
    """One answer. A second thread asks the model, so that this one can tell every half second that somebody writes."""

    def __init__(
        self,
        kept: Conversations,
        pool: ModelPool,
        message: int,
        question: int,
        settings: Settings,
        sampling: SamplingConfig,
        change: Change | None,
    ) -> None:
        self.message = message
        self.thread = kept.thread_of(message)
        self.ended = threading.Event()
        self._kept, self._pool = kept, pool
        self._question, self._settings, self._sampling, self._change = question, settings, sampling, change
        self._lock = threading.Lock()
        """Guards what follows."""
        self._generation: Generation | None = None
        self._stops, self._is_wanted = False, False
        self._text: list[str] = []
        self._tokens: list[GeneratedToken] = []
        """What was written since it was kept last."""
        self._model: LanguageModel | None = None
        self._count, self._prompt_tokens, self._left_out = 0, 0, 0
        self._began = time.monotonic()
        self._first_at = self._last_at = 0.0
        self._ending: Ending = "interrupted"
        self._error = ""

    def stop(self, *, is_wanted: bool) -> None:
        """The token that is being written is the last. `is_wanted`: by who asked, not as the program ends."""
        with self._lock:
            self._stops, self._is_wanted = True, self._is_wanted or is_wanted
            if self._generation is not None:
                self._generation.cancel()

    def run(self) -> None:
        """Until it has ended and all of it is kept."""
        done = threading.Event()
        threading.Thread(target=self._ask, args=(done,), name="answer's model", daemon=True).start()
        while not done.wait(KEEP_SECONDS):
            try:
                if not self._keep():
                    self.stop(is_wanted=True)
            except MoescopeError as error:  # of the disk: it stays in memory until the next time
                _log.warning("%s", error)
        try:
            self._keep()
            self._kept.end_answer(self.message, self._ending, self._error)
        except MoescopeError as error:
            _log.warning("the end of an answer was lost: %s", error)

    def _ask(self, done: threading.Event) -> None:
        try:
            for event in self._start():
                self._take(event)
        except MoescopeError as error:
            self._ending, self._error = "failed", sentence(str(error))
        except Exception:
            _log.exception("an answer failed")
            self._ending, self._error = "failed", "A fault of ours ended it; the log of the program says which."
        finally:
            done.set()

    def _start(self) -> Generation:
        from moe_core.inference.requests import Request

        for last_try in (False, True):
            scheduler = self._pool.scheduler(self._settings.model)
            model = scheduler.engine.model
            prompt, left_out = fitted_prompt(model, self._kept.path_to(self._question), self._settings)
            self._kept.name_writer(self.message, writer_of(model, answers=prompt.has_template))
            request = Request(
                prompt.token_ids,
                self._sampling,
                stop=prompt.stop,
                intervention=None if self._change is None else self._change.intervention,
                thread=self.thread,
            )
            try:
                generation = scheduler.start(request, whole=True)
                break
            except ShutDownError:  # it made room for another model meanwhile
                if last_try:
                    raise
        with self._lock:
            self._generation, self._model, self._left_out = generation, model, left_out
            if self._stops:
                generation.cancel()
        return generation

    def _take(self, event: Event) -> None:
        from moe_core.inference.requests import Finished, GeneratedToken, PromptRead

        now = time.monotonic()
        with self._lock:
            if isinstance(event, PromptRead):
                self._prompt_tokens = len(event.token_ids)
            elif isinstance(event, GeneratedToken):
                self._text.append(event.text)
                self._tokens.append(event)
                self._count += 1
                self._first_at = self._first_at or now
                self._last_at = now
            elif isinstance(event, Finished):
                self._text.append(event.text)
                # The scheduler cancels, too, when the program ends.
                self._ending = "interrupted" if event.reason == "cancelled" and not self._is_wanted else event.reason

    def _keep(self) -> bool:
        """Keep what is new; whether to go on."""
        with self._lock:
            texts, tokens = len(self._text), len(self._tokens)
            text, new = "".join(self._text), self._tokens[:tokens]
            written = None if not new or self._model is None else _written(self._model, new)
            progress = Progress(
                self._count,
                self._prompt_tokens,
                self._left_out,
                self._first_at - self._began if self._count else 0.0,
                self._last_at - self._first_at,
            )
        goes_on = self._kept.add(self.message, text, written, progress)
        with self._lock:
            del self._text[:texts], self._tokens[:tokens]
        return goes_on


def sampling_of(settings: Settings) -> SamplingConfig:
    """Raises UsageError for settings out of range."""
    from moe_core.inference.sampling import SamplingConfig

    return SamplingConfig(settings.max_new_tokens, settings.temperature, settings.top_k, settings.top_p, settings.seed)


def writer_of(model: LanguageModel, *, answers: bool) -> Writer:
    """What is kept of a model with each of its answers."""
    return Writer(
        model.name, tuple(map(int, model.moe_layers)), model.num_experts, model.top_k, model.context_window, answers
    )


def fitted_prompt(model: LanguageModel, path: Sequence[Message], settings: Settings) -> tuple[ChatPrompt, int]:
    """The conversation as the model reads it, and how many messages at its beginning are left out.

    As many as it takes to fit the model's window, with room for the answer, half a window of it at most. Raises
    UsageError where the last message alone does not fit.
    """
    from moe_core.inference.chat_format import Message as Said
    from moe_core.inference.chat_format import chat_prompt

    told = [Said("system", settings.system)] if settings.system.strip() else []
    spoken = [message for message in path if message.text.strip()]
    starts = [place for place, message in enumerate(spoken) if message.role == "user"]
    if not starts:
        raise RunError("there is no message to answer; write one")

    def prompt_from(start: int) -> ChatPrompt:
        # One turn after the other, as templates want them: a message without an answer is one with the next.
        turns = groupby(spoken[start:], key=lambda message: message.role)
        said = [Said(role, "\n\n".join(message.text for message in messages)) for role, messages in turns]
        return chat_prompt(model, [*told, *said])

    window = model.context_window
    room = window - min(settings.max_new_tokens, window // 2)
    first, last = 0, len(starts) - 1  # bisect: the fewer messages, the shorter
    while first < last:
        middle = (first + last) // 2
        if len(prompt_from(starts[middle]).token_ids) <= room:
            last = middle
        else:
            first = middle + 1
    prompt = prompt_from(starts[first])
    if len(prompt.token_ids) > window:
        raise UsageError(
            f"this message, with what is put before it, has {len(prompt.token_ids):,} tokens, and {model.name} sees "
            f"{window:,} at once (its context window); shorten it, or choose a model with a longer window"
        )
    return prompt, starts[first]


def _written(model: LanguageModel, tokens: Sequence[GeneratedToken]) -> WrittenTokens:
    return WrittenTokens(
        token_ids=np.array([token.token_id for token in tokens], np.int32),
        pieces=tuple(model.tokenizer.token_bytes(token.token_id) for token in tokens),
        experts=np.stack([token.experts for token in tokens]),
        weights=np.stack([token.scores for token in tokens]).astype(np.float32),
        losses=np.array([token.loss for token in tokens], np.float32),
    )


_all: weakref.WeakSet[Answers] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """A thread inside the model must not outlive the interpreter's end."""
    for answers in list(_all):
        answers.close()
