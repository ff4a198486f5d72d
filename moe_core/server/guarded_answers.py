"""What stands around every answer of a server of ours: headers that browsers obey, and whom it answers at all.

A foreign site whose name points to this machine could read its answers otherwise (DNS rebinding).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from starlette.datastructures import URL, MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    # A page of another origin that shows ours in a frame could make its user click what he does not see.
    "Content-Security-Policy": "frame-ancestors 'self'",
    # A file is what its type says, even where its content looks like a script.
    "X-Content-Type-Options": "nosniff",
}
_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
THIS_MACHINE = ("localhost", "127.0.0.1", "[::1]")


class GuardedAnswers:
    """Middleware: HEADERS on every answer, and 400 for a host that is not allowed.

    `allowed` gives the hosts' names at each request, `remedy` says to the user of a refused one what to do.
    """

    def __init__(
        self,
        app: ASGIApp,
        allowed: Callable[[], Sequence[str]],
        remedy: Callable[[str | None], str],
        *,
        as_json: bool = False,
    ) -> None:
        self._app = app
        self._allowed = allowed
        self._remedy = remedy
        self._as_json = as_json

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the websocket's host is checked by Streamlit, by the same setting
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        host, allowed = _host_of(scope), self._allowed()
        if is_allowed(host, allowed):
            await self._app(scope, receive, send_with_headers)
        else:
            await self._refusal(host, allowed)(scope, receive, send_with_headers)

    def _refusal(self, host: str | None, allowed: Sequence[str]) -> Response:
        line = f"does not answer to the host {host!r}; expected one of {', '.join(allowed)}. {self._remedy(host)}"
        if not self._as_json:
            return PlainTextResponse(f"This dashboard {line}\n", status_code=400)
        return error_answer(400, f"this server {line}", "wrong_host")


def error_answer(
    status: int, message: str, code: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """An error as OpenAI's interface has it; see error_body."""
    content = json.dumps(error_body(status, message, code, param))
    return Response(content, status, headers, media_type="application/json")


def error_body(status: int, message: str, code: str, param: str | None = None) -> dict[str, dict[str, str | None]]:
    """What such an answer holds. `param`: the field of the request that is wrong."""
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def is_allowed(host: str | None, allowed: Sequence[str]) -> bool:
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
