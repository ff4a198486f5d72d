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
from moe_core.server.draining import FLUSH_SECONDS, DrainedAnswers, DrainingServer
from moe_core.server.listening import BACKLOG, Listener
from moe_core.words import duration

logger = logging.getLogger(__name__)


def run(
    application: ASGIApp,
    listener: Listener,
    *,
    answers: DrainedAnswers,
    open_models: Callable[[], None],
    close_models: Callable[[], None],
    drain_seconds: float,
) -> Signals:
    """Answer until a signal comes, which is given back. `open_models` runs beside it; what it raises ends the server
    and is raised here. `answers` is the part of the application that counts them; `close_models` ends whatever is still
    written after `drain_seconds`."""

    def drain(wait: bool) -> None:
        if wait and not answers.close(drain_seconds):
            logger.warning("answers still under way after %s are cut off", duration(drain_seconds))
        close_models()

    config = uvicorn.Config(
        application,
        http="h11",  # the one that is always there; httptools would keep a head without end
        log_config=None,  # see logs.py
        access_log=False,  # the API logs its answers itself, with the id that each carries
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
