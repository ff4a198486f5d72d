"""What stands around every answer of the dashboard's server: headers that browsers obey, and whom it answers at all.

Streamlit checks the host of its websocket alone. Pages and files need the same check: a foreign site whose name points
to this machine could read them otherwise (DNS rebinding).
"""

from __future__ import annotations

import streamlit as st
from starlette.datastructures import URL, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    # A page of another origin that shows the dashboard in a frame could make its user click what he does not see.
    "Content-Security-Policy": "frame-ancestors 'self'",
    # A file is what its type says, even where its content looks like a script.
    "X-Content-Type-Options": "nosniff",
}


class GuardedAnswers:
    """Middleware: HEADERS on every answer; 400 for a host that is not in Streamlit's setting server.allowedHosts."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the websocket's host is checked by Streamlit, by the same setting
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        host = _host_of(scope)
        allowed = st.get_option("server.allowedHosts")
        if is_allowed(host, allowed):
            await self._app(scope, receive, send_with_headers)
        else:
            refusal = PlainTextResponse(
                f"This dashboard does not answer to the host {host!r}; expected one of {', '.join(allowed)}. "
                f"Start it with --server.allowedHosts={host or 'NAME'} if this is your own name for its machine.\n",
                status_code=400,
            )
            await refusal(scope, receive, send_with_headers)


def is_allowed(host: str | None, allowed: list[str]) -> bool:
    """Whether a host's name is among the allowed ones; "*.example.org" allows all below it, an empty list everyone."""
    if not allowed:
        return True
    if host is None:
        return False
    names = [name.strip().lower().strip("[]").rstrip(".") for name in allowed]
    plain = host.lower().rstrip(".")
    return any(name in ("*", plain) or (name.startswith("*.") and plain.endswith(name[1:])) for name in names)


def _host_of(scope: Scope) -> str | None:
    """The name in the Host header, without port; None where there is none or it is malformed."""
    given = [value for name, value in scope["headers"] if name == b"host"]
    if len(given) != 1:
        return None
    try:
        address = URL(f"//{given[0].decode('ascii')}")
        _ = address.port  # raises for a port that is no number
    except ValueError:  # UnicodeDecodeError is one
        return None
    return None if address.username is not None or address.path else address.hostname


MIDDLEWARE = [Middleware(GuardedAnswers)]
