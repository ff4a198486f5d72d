"""An application on a socket until a signal comes, while its models are being opened."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from signal import Signals

import uvicorn
from starlette.types import ASGIApp

from moe_core.errors import ShutDownError
from moe_core.server.draining import FLUSH_SECONDS, DrainingServer
from moe_core.server.listening import BACKLOG, Listener
from moe_core.words import duration

logger = logging.getLogger(__name__)


def run(
    application: ASGIApp, listener: Listener, *, open_models: Callable[[], None], drain: Callable[[bool], None]
) -> Signals:
    """Answer until a signal comes, which is given back. `open_models` runs beside it; what it raises ends the server
    and is raised here. `drain` as in DrainingServer."""
    config = uvicorn.Config(
        application,
        log_config=None,  # see logs.py
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=FLUSH_SECONDS,
    )
    server = DrainingServer(config, drain)
    failed: list[Exception] = []

    def opening() -> None:
        began = time.monotonic()
        try:
            open_models()
        except ShutDownError:  # a signal came first
            return
        except Exception as error:
            failed.append(error)
            server.should_exit = True
            return
        logger.info("ready after %s", duration(time.monotonic() - began))

    thread = threading.Thread(target=opening, name="open models", daemon=True)
    thread.start()
    server.run([listener])
    if failed:
        raise failed[0]
    return server.ended_by or Signals.SIGTERM
