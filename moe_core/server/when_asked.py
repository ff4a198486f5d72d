"""An application that is made when the first request comes: whoever starts a server does not wait for its libraries."""

from __future__ import annotations

from collections.abc import Callable

from anyio import to_thread
from starlette.types import ASGIApp, Receive, Scope, Send

from moe_core.once import Once


class WhenAsked:
    """Passes requests on to what `make` gives; `make` runs once, in a thread, so that other answers go on."""

    def __init__(self, make: Callable[[], ASGIApp]) -> None:
        self._make = make
        self._once = Once[ASGIApp]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        application = self._once.made
        if application is None:
            application = await to_thread.run_sync(self._once.once, self._make)
        await application(scope, receive, send)
