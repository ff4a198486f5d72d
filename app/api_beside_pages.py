"""The API on the dashboard's own port, over the models that its side bar offers."""

from __future__ import annotations

import ipaddress
import json
import os
from contextlib import suppress

import streamlit as st
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from moe_core.program import program
from moe_core.server.libraries import missing_library
from moe_core.server.paths import KEY_VARIABLE, PATHS
from moe_core.server.when_asked import WhenAsked


class ApiBesideThePages:
    """The API over what the side bar offers, made when it is first asked.

    A dashboard that others can reach has it only with a key: its own pages need none, and whoever opens them to others
    has decided so, but not about this.
    """

    def __init__(self) -> None:
        self._api = WhenAsked(_make_api)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _serves_this_machine_alone() or os.environ.get(KEY_VARIABLE):
            await self._api(scope, receive, send)
            return
        address = st.get_option("server.address") or "every address"
        message = (
            f"this dashboard listens at {address}, where its API needs a key: "
            f"start it with {KEY_VARIABLE} set, or serve the API alone with `{program()} serve --host ADDRESS`"
        )
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": "no_key_set"}
        await Response(json.dumps({"error": error}), 403, media_type="application/json")(scope, receive, send)


def routes() -> list[BaseRoute]:
    """The API's paths; none where the extra `serve` is not installed."""
    api = ApiBesideThePages()
    return [] if missing_library() else [Route(path, endpoint=api) for path in PATHS]


def _make_api() -> ASGIApp:
    from app.chat_loaders import model_pool
    from moe_core.server.api import create_api
    from moe_core.server.api_options import ApiOptions

    return create_api(model_pool(), ApiOptions(api_key=os.environ.get(KEY_VARIABLE) or None))


def _serves_this_machine_alone() -> bool:
    address = st.get_option("server.address") or ""
    with suppress(ValueError):
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    return address.lower() == "localhost"
