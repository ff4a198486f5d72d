"""Requests in, tokens out: write on from a prompt, and keep through which experts every token passes.

    for event in Engine(model).start(Request("The tenant shall", stop=(".",))):
        ...                                   # PromptRead, then a GeneratedToken each, then Finished

    with Scheduler(Engine(model)) as scheduler:     # many at once: moe_core.inference.scheduler
        generation = scheduler.start(Request("The tenant shall"))

Both answer by the same code, a Batch: here of one request, whose reader computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from moe_core.errors import UsageError
from moe_core.inference.batch import Batch
from moe_core.inference.kept_prefixes import KeptPrefixes
from moe_core.inference.mailbox import Mailbox
from moe_core.inference.open import language_model
from moe_core.inference.own_model import OwnModel
from moe_core.inference.prefix_folder import PrefixFolder
from moe_core.inference.protocol import LanguageModel, Loaded, check_token_ids
from moe_core.inference.requests import (
    Completion,
    Ending,
    EndToken,
    Event,
    Finished,
    GeneratedToken,
    PromptRead,
    Request,
    TokensAsText,
    prompt_ids,
)
from moe_core.inference.row import Row

__all__ = [
    "Completion",
    "EndToken",
    "Ending",
    "Engine",
    "Event",
    "Finished",
    "GeneratedToken",
    "Generation",
    "PromptRead",
    "Request",
    "TokensAsText",
]

KEPT_BYTES = 2**30


class Engine:
    """A model that takes requests. Several may be under way at once, in several threads too; each has its own cache."""

    def __init__(
        self, loaded: Loaded | LanguageModel, *, kept_bytes: int = KEPT_BYTES, prefix_cache: Path | None = None
    ) -> None:
        """`kept_bytes`: memory for what threads have read, see Request.thread. `prefix_cache`: the folder of a
        PrefixFolder, for beginnings of prompts that any process has read.

        Raises what language_model raises, for a model that does not continue text, and UsageError for a folder that
        does not suit.
        """
        self.model = language_model(loaded)
        self.kept = KeptPrefixes(kept_bytes)
        self.folder: PrefixFolder | None = None
        if prefix_cache is not None:
            if not isinstance(self.model, OwnModel):
                raise UsageError(
                    f"a prefix cache keeps what runs of ours read; {self.model.name} is another kind of model"
                )
            self.folder = PrefixFolder(prefix_cache, self.model)

    def start(self, request: Request) -> Generation:
        """Check the request; nothing is computed until its events are asked for.

        The model sees the last tokens only, from half a `context_window` up to a whole one: when the cache is full, the
        later half of it is read in anew and generation goes on. A longer prompt is read from its last whole window. An
        empty prompt starts a new text. The end-of-text token is not given out, nor bytes of an unfinished character.
        Raises DataError when UTF-8 cannot hold the prompt, UsageError when the model cannot do the intervention, cannot
        begin a text of its own, or cannot write at all because its routers see the future.
        """
        row = self.row(request, Mailbox())
        return Generation(request, self._written(row), row.cancelled.set, row.mailbox.pop)

    def row(self, request: Request, mailbox: Mailbox) -> Row:
        """A checked request as a Batch takes it; its events go to the mailbox. Raises as `start` does."""
        model = self.model
        if isinstance(model, OwnModel):
            model.model.check_writes()
        token_ids = prompt_ids(model, request.prompt)
        check_token_ids(model, token_ids)
        if request.intervention is not None:
            request.intervention.check(model.model)
        return Row(model, request, token_ids, mailbox)

    def _written(self, row: Row) -> Generator[Event, None, None]:
        with Batch(self.model, self.kept, folder=self.folder) as batch:
            batch.add(row)
            event = None
            while not isinstance(event, Finished):
                if (event := row.mailbox.pop()) is not None:
                    yield event
                else:
                    for ended in batch.step():
                        ended.tell_end()


class Generation(Iterator[Event]):
    """One request under way: iterate over its events. One thread at a time may ask for them."""

    def __init__(
        self,
        request: Request,
        events: Generator[Event, None, None],
        cancel: Callable[[], None],
        pop: Callable[[], Event | None],
    ) -> None:
        """Engine.start and Scheduler.start make it."""
        self.request = request
        self._events = events
        self._cancel = cancel
        self._pop = pop

    def __next__(self) -> Event:
        return next(self._events)

    def arrived(self) -> list[Event]:
        """What a scheduler has computed since the last call, without waiting: for whoever is told that there is some
        (Scheduler.start). Raises what went wrong, once what came before it was given."""
        events: list[Event] = []
        try:
            events.extend(iter(self._pop, None))
        except Exception:
            if not events:
                raise
        return events

    def cancel(self) -> None:
        """From any thread: the token that is being computed is the last one."""
        self._cancel()

    def close(self) -> None:
        """Give it up, from the thread that iterates: nothing is left on the model. Deleting it does the same."""
        self._cancel()
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
