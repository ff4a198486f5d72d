"""A server that ends as a service should: one signal lets the answers under way end, a second one cuts them off."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from moe_core.server.guarded_answers import error_answer

logger = logging.getLogger(__name__)
FLUSH_SECONDS = 10
"""For readers to take what was written for them, after the last token."""


class DrainedAnswers:
    """Middleware that counts the answers under way and, once it is closed, lets nobody in: 503.

    An answer may ask its model several times, so it has ended when its last byte is sent and not when the model rests.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._changed = threading.Condition()
        self._under_way = 0
        self._is_closed = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._changed:
            is_let_in = not self._is_closed
            self._under_way += is_let_in
        if not is_let_in:
            message, headers = "the server ends and takes no further request", {"Retry-After": "5"}
            await error_answer(503, message, "shutting_down", headers=headers)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def close(self, seconds: float) -> bool:
        """Let nobody in any more and wait, at most so long, until all answers have ended; whether they have."""
        with self._changed:
            self._is_closed = True
            return self._changed.wait_for(lambda: not self._under_way, seconds)


class DrainingServer(uvicorn.Server):
    """uvicorn, which goes on answering until `drain` is done: who asks meanwhile is told 503, not turned away.

    `drain(True)` returns when the requests under way have ended; `drain(False)` ends them at their next token.
    """

    def __init__(self, config: uvicorn.Config, drain: Callable[[bool], None]) -> None:
        super().__init__(config)
        self._drain = drain
        self.ended_by: signal.Signals | None = None
        """The first signal that came."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature uvicorn calls
        """The first signal drains, another one does not wait."""
        is_first = self.ended_by is None
        if is_first:
            self.ended_by = signal.Signals(sig)
            logger.info("%s: answers under way end, new requests get 503", self.ended_by.name)
        else:
            logger.warning("%s again: answers under way are cut off", signal.Signals(sig).name)
            self.force_exit = True
        # Waiting in a signal's handler would hold up the loop that answers.
        threading.Thread(target=self._end, args=(is_first,), name="drain", daemon=True).start()

    def _end(self, wait: bool) -> None:
        try:
            self._drain(wait)
        except Exception:
            logger.exception("the models could not be closed")
        self.should_exit = True
