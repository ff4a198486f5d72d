"""Events on their way from whoever computes them to whoever asked, perhaps in another thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from moe_core.inference.requests import Event, Finished, GeneratedToken, TokensAsText

Told = Callable[[bool], None]
"""Is told that there is an event, and whether it is the last one."""


class Mailbox:
    """Events in their order. The sender never waits: what is beyond `room` tokens is kept as text."""

    def __init__(self, room: int | None = None, told: Told | None = None) -> None:
        """`room`: tokens that may wait with all that is known of them; None = any number. `told` is called, by the
        sender, once there is something to `pop`; it must be quick."""
        self._room = room
        self._told = told
        self._changed = threading.Condition()
        self._events: deque[Event] = deque()
        self._late_text: list[str] = []
        self._late_ids: list[int] = []
        """Pieces of the TokensAsText that comes behind `_events`."""
        self._error: Exception | None = None

    def put(self, event: Event) -> None:
        """Send an event."""
        with self._changed:
            full = self._room is not None and len(self._events) >= self._room
            if isinstance(event, GeneratedToken) and (full or self._late_ids):
                self._late_text.append(event.text)
                self._late_ids.append(event.token_id)
                if not full:
                    self._close_text()
            else:
                self._close_text()
                self._events.append(event)
            self._changed.notify_all()
        if self._told is not None:
            self._told(isinstance(event, Finished))

    def fail(self, error: Exception) -> None:
        """There will be no further event: `pop` raises the error once those before it are read."""
        with self._changed:
            self._error = error
            self._changed.notify_all()
        if self._told is not None:
            self._told(True)

    def pop(self) -> Event | None:
        """The next event; None if there is none now."""
        with self._changed:
            if not self._events:
                self._close_text()
            if not self._events and self._error is not None:
                raise self._error
            return self._events.popleft() if self._events else None

    def wait(self) -> Event:
        """The next event, as soon as there is one."""
        with self._changed:
            while (event := self.pop()) is None:
                self._changed.wait()
            return event

    def _close_text(self) -> None:
        if self._late_ids:
            self._events.append(TokensAsText("".join(self._late_text), tuple(self._late_ids)))
            self._late_text, self._late_ids = [], []
