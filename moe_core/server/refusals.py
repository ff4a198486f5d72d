"""Errors as OpenAI's interface has them: {"error": {"message", "type", "param", "code"}}, with a status that fits."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from moe_core.errors import (
    DataError,
    MoescopeError,
    QueueFullError,
    ShutDownError,
    UnknownModelError,
    UsageError,
    shortened,
)
from moe_core.server.guarded_answers import error_answer, error_body

logger = logging.getLogger(__name__)
_SEVERAL_KINDS = {
    "prompt": "a text, a list of token ids from 0 up, or a list of 1 to 128 of either",
    "stop": "a string of 1 to 256 characters, or a list of at most 16 of them",
}
"""Fields of which pydantic would tell how each of the kinds is not met."""


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered."""

    status: int
    message: str
    code: str
    param: str | None = None
    """The field of the body that is wrong, "temperature"."""
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> Mapping[str, Any]:
        """As it is sent."""
        return error_body(self.status, self.message, self.code, self.param)

    def response(self) -> Response:
        """As an answer."""
        return error_answer(self.status, self.message, self.code, self.param, self.headers)


class RefusedError(MoescopeError):
    """A request is refused."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def refused(message: str, param: str | None = None, code: str = "invalid_value") -> RefusedError:
    """A request whose field `param` cannot be."""
    return RefusedError(Refusal(400, message, code, param))


def refusal_of(error: Exception) -> Refusal:
    """What is told of an error; one that is none of the user's is logged, and only its kind is told."""
    if isinstance(error, RefusedError):
        return error.refusal
    if isinstance(error, UnknownModelError):
        return Refusal(404, str(error), "model_not_found", "model")
    if isinstance(error, QueueFullError):
        seconds = str(max(1, math.ceil(error.retry_after_seconds)))
        return Refusal(429, str(error), "queue_full", headers={"Retry-After": seconds})
    if isinstance(error, ShutDownError):
        return Refusal(503, str(error), "shutting_down", headers={"Retry-After": "5"})
    if isinstance(error, UsageError | DataError):
        return Refusal(400, str(error), "invalid_value")
    if isinstance(error, MoescopeError):
        logger.error("%s: %s", type(error).__name__, error)
        return Refusal(500, "the model cannot answer; the server's log says why", "model_failed")
    logger.error("a request failed", exc_info=error)
    return Refusal(500, "a fault of the server; its log says more", "internal_error")


def refuse_in_one_shape(app: FastAPI) -> None:
    """Let whatever is raised while a request is answered become a Refusal."""

    async def tell(_: Request, error: Exception) -> Response:
        return refusal_of(error).response()

    async def tell_invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _of_validation(error).response()

    async def tell_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _of_http(error, request).response()

    app.add_exception_handler(MoescopeError, tell)
    app.add_exception_handler(RequestValidationError, tell_invalid)
    app.add_exception_handler(HTTPException, tell_http)


def _of_validation(error: RequestValidationError) -> Refusal:
    """The first fault of a body, in one line."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "query")]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return Refusal(400, f"the body is no JSON: {reason} at character {first['loc'][-1]}", "invalid_json")
    message = first["msg"].removeprefix("Value error, ")
    if not place:
        return Refusal(
            400,
            "the body is no JSON object; expected one, and the header Content-Type: application/json",
            "invalid_json",
        )
    param = place[0]
    if (expected := _SEVERAL_KINDS.get(param)) is not None and first["type"] != "missing":
        return Refusal(400, f"{param}: expected {expected}", "invalid_value", param)
    given = "" if first["type"] == "missing" else f"; got {shortened(first.get('input'))}"
    return Refusal(400, f"{'.'.join(place)}: {message[:1].lower()}{message[1:]}{given}", "invalid_value", param)


def _of_http(error: HTTPException, request: Request) -> Refusal:
    headers = dict(error.headers or {})
    path, method = request.url.path[:100], request.method
    if error.status_code == 404:
        return Refusal(404, f"there is nothing at {path!r}; /openapi.json lists what there is", "unknown_route")
    if error.status_code == 405:
        allowed = headers.get("Allow", headers.get("allow", ""))
        return Refusal(405, f"{path!r} takes no {method}; expected {allowed}", "method_not_allowed", headers=headers)
    if error.status_code == 400:  # FastAPI could not read the body, and does not say why
        message = "the body is no JSON: expected UTF-8, neither compressed nor nested hundreds of levels deep"
        return Refusal(400, message, "invalid_json")
    code = "body_too_large" if error.status_code == 413 else "invalid_request"
    return Refusal(error.status_code, str(error.detail), code, headers=headers)
