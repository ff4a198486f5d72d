"""What every request passes: its number, the key, the size of its body; and what every answer gets."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moe_core.server.api_metrics import ApiMetrics
from moe_core.server.api_options import ApiOptions
from moe_core.server.refusals import Refusal, refusal_of

logger = logging.getLogger(__name__)
PUBLIC = ("/health",)
"""Answered without a key, so that whoever watches the server needs none."""
REQUEST_ID = "x-request-id"
_PLAIN_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


class Door:
    """Middleware. A request without the key is told nothing, not even whether there is something at its path."""

    def __init__(self, app: ASGIApp, options: ApiOptions, metrics: ApiMetrics) -> None:
        self._app = app
        self._most_bytes = options.max_body_bytes
        self._key = None if options.api_key is None else _digest(options.api_key)
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID, "")
        request_id = given if _PLAIN_ID.fullmatch(given) else uuid.uuid4().hex
        began, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        refusal = self._refusal(scope["path"], headers)
        try:
            if refusal is not None:
                await refusal.response()(scope, receive, send_with_id)
            else:
                await self._app(scope, self._counted(receive), send_with_id)
        except Exception as error:
            if status:
                raise
            await refusal_of(error).response()(scope, receive, send_with_id)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.note_answer(route, status, time.perf_counter() - began)
            logger.info("%s %s %d %s", scope["method"], route, status, request_id)

    def _refusal(self, path: str, headers: Headers) -> Refusal | None:
        if self._key is not None and path not in PUBLIC:
            kind, _, key = headers.get("authorization", "").partition(" ")
            # Digests are compared, so that the time tells nothing of the key's length either.
            if kind.lower() != "bearer" or not hmac.compare_digest(_digest(key.strip()), self._key):
                return Refusal(
                    401,
                    "the key is missing or wrong; expected the header Authorization: Bearer KEY with this server's key",
                    "invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        length = headers.get("content-length", "")
        if length.isdigit() and (len(length) > 18 or int(length) > self._most_bytes):
            return _too_large(self._most_bytes)
        return None

    def _counted(self, receive: Receive) -> Receive:
        """Read the body no further than is allowed, whatever its header says of its length."""
        read = 0

        async def receive_counted() -> Message:
            nonlocal read
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if read > self._most_bytes:
                    refusal = _too_large(self._most_bytes)
                    raise HTTPException(refusal.status, refusal.message, dict(refusal.headers))
            return message

        return receive_counted


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _too_large(most_bytes: int) -> Refusal:
    message = f"the body is larger than {most_bytes:,} bytes; send less at once"
    return Refusal(413, message, "body_too_large", headers={"Connection": "close"})
