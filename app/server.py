"""What stands around every answer of the dashboard's server: headers that browsers obey, and whom it answers at all.

Streamlit checks the host of its websocket alone; pages, files and the API have the same check by the same setting.
"""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Sequence

import streamlit as st
from starlette.middleware import Middleware

from moe_core.server.guarded_answers import GuardedAnswers


def _allowed() -> Sequence[str]:
    names: Sequence[str] = st.get_option("server.allowedHosts")
    return names


def _remedy(host: str | None) -> str:
    return f"Start it with --server.allowedHosts={host or 'NAME'} if this is your own name for its machine."


MIDDLEWARE = [Middleware(GuardedAnswers, allowed=_allowed, remedy=_remedy)]


@functools.cache
def load_pages() -> threading.Thread:
    """Import what every page needs while the browser gets Streamlit's own files, a second that a user need not wait."""
    thread = threading.Thread(target=_import_pages, name="load pages", daemon=True)
    thread.start()
    return thread


def _import_pages() -> None:
    for module in ("app.frame", "app.components.experts_to_look_at"):
        importlib.import_module(module)
