"""The choices of one question, computed by a scheduler's thread and read here without one of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from anyio import to_thread

from moe_core.errors import QueueFullError
from moe_core.inference.engine import Event, Finished, Generation, PromptRead, Request
from moe_core.inference.model_pool import Loan

PAUSE_SECONDS = 0.05
"""Before a further choice of a question that has begun asks for a place again."""
PIECE_SECONDS, PIECES_A_SECOND = 0.02, 80
"""Between two readings of what a stream has written, at least; and how many there are of all streams of a model. A
piece for every token of a fast model would cost more than the token, and nobody sees the difference."""


@dataclass(frozen=True)
class Arrived:
    """Events of one choice, the oldest first."""

    choice: int
    events: tuple[Event, ...]


class Answering:
    """Several requests of one question. As many are under way as the model has slots; the others follow.

    Used in the event loop that made it: `begin` it, read its `arrivals`, and `end` it whatever happens.
    """

    def __init__(self, loan: Loan, requests: Sequence[Request], *, whole: bool, in_pieces: bool) -> None:
        """`loan`: of the model; it is given back once all requests have begun, so that a reader who takes nothing keeps
        no other model out. `whole`: see Scheduler.start. `in_pieces`: tell what is written while it is written, not at
        its end only."""
        self._loan = loan
        self._scheduler = loan.scheduler
        self._requests = requests
        self._whole = whole
        self._in_pieces = in_pieces
        self._loop = asyncio.get_running_loop()
        self._news, self._end = asyncio.Event(), asyncio.Event()
        """Something has arrived; one of the choices has ended."""
        self._is_told = False
        """Whether the loop knows of news that it has not read: it is not told again then."""
        self._under_way: dict[int, Generation] = {}
        self._next = 0

    async def begin(self) -> None:
        """Start the first request. Raises what Scheduler.start raises: a question that was let in is answered whole."""
        await self._start_next()

    def end(self) -> None:
        """What is under way ends with the token that is being computed; nothing further is asked of the model."""
        for generation in self._under_way.values():
            generation.cancel()
        self._loan.give_back()

    async def arrivals(self) -> AsyncIterator[Arrived]:
        """What is computed, as it comes. Raises what went wrong with any of the requests."""
        while self._under_way or self._next < len(self._requests):
            await self._start_others()
            await self._news.wait()
            self._is_told = False
            self._news.clear()
            self._end.clear()
            has_text = False
            for choice, generation in list(self._under_way.items()):
                # Asked until nothing is there: a fault comes only after what was computed before it.
                while events := tuple(generation.arrived()):
                    has_ended = isinstance(events[-1], Finished)
                    has_text = has_text or not isinstance(events[-1], PromptRead)
                    if has_ended:
                        del self._under_way[choice]
                    yield Arrived(choice, events)
                    if has_ended:
                        break
            if has_text and self._under_way:
                pause = max(PIECE_SECONDS, self._scheduler.running / PIECES_A_SECOND)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._end.wait(), pause)

    async def _start_others(self) -> None:
        while self._next < len(self._requests) and len(self._under_way) < self._scheduler.slots:
            try:
                await self._start_next()
            except QueueFullError:
                if self._under_way:
                    return
                await asyncio.sleep(PAUSE_SECONDS)

    async def _start_next(self) -> None:
        request = self._requests[self._next]
        # Checking a request takes a moment in which other answers go on.
        self._under_way[self._next] = await to_thread.run_sync(
            lambda: self._scheduler.start(request, whole=self._whole, told=self._tell, further=self._next > 0)
        )
        self._next += 1
        if self._next == len(self._requests):
            self._loan.give_back()

    def _tell(self, is_last: bool) -> None:
        """In the computing thread, which is held up by every call of the loop."""
        if is_last or (self._in_pieces and not self._is_told):
            self._is_told = True
            with suppress(RuntimeError):  # the server's loop has ended
                self._loop.call_soon_threadsafe(self._note, is_last)

    def _note(self, is_last: bool) -> None:
        self._news.set()
        if is_last:
            self._end.set()
