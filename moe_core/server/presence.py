"""Work for a client, for as long as that is there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import anyio
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

T = TypeVar("T")
UNBUFFERED = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""For proxies, which would keep an answer until it is whole."""


async def while_present(request: Request, work: Callable[[], Awaitable[T]]) -> T | None:
    """What `work` gives; it is cancelled when the client goes away, and None is given. Raises what `work` raises.

    The body must have been read.
    """
    found: list[T] = []
    failed: list[Exception] = []
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(watch)
        try:
            found.append(await work())
        except Exception as error:  # a group would wrap it
            failed.append(error)
        group.cancel_scope.cancel()
    if failed:
        raise failed[0]
    return found[0] if found else None


class EventStream(StreamingResponse):
    """Server-sent events, until the client goes away; `end` is called then, and whatever else happens."""

    def __init__(self, pieces: AsyncIterator[bytes], end: Callable[[], None]) -> None:
        super().__init__(pieces, media_type="text/event-stream", headers=UNBUFFERED)
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()  # the pieces' own end may never come: nobody may have asked for the first one
