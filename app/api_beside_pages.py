"""The API on the dashboard's own port, over the models that its side bar offers."""

from __future__ import annotations

import ipaddress
import os
from contextlib import suppress

import streamlit as st
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from moe_core.errors import UsageError
from moe_core.program import program
from moe_core.server.guarded_answers import error_answer
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
        await error_answer(403, message, "no_key_set")(scope, receive, send)


def routes() -> list[BaseRoute]:
    """The API's paths; none where the extra `serve` is not installed."""
    api = ApiBesideThePages()
    return [] if missing_library() else [Route(path, endpoint=api) for path in PATHS]


def _make_api() -> ASGIApp:
    from app.chat_loaders import model_pool
    from moe_core.config import load_config
    from moe_core.server.api import create_api
    from moe_core.server.api_options import ApiOptions

    try:
        config = load_config(with_condor=True).serve
    except UsageError as error:
        return error_answer(500, str(error), "wrong_setting")
    key = os.environ.get(KEY_VARIABLE) or None
    options = ApiOptions(api_key=key, max_tokens=config.max_tokens, temperature=config.temperature)
    return create_api(model_pool(), options)


def _serves_this_machine_alone() -> bool:
    address = st.get_option("server.address") or ""
    with suppress(ValueError):
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    return address.lower() == "localhost"
