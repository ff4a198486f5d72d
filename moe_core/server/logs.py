"""Where a server's log goes: standard error, and a folder if one is named. What is asked and answered is in no line."""

from __future__ import annotations

import logging
import logging.handlers
import sys
from pathlib import Path

from moe_core.errors import UsageError

FILE = "serve.log"
MOST_BYTES, OLDER_FILES = 10_000_000, 5
OURS = ("moe_core", "uvicorn")
"""Loggers that say what the level asks for; other libraries say warnings only."""


def log_to(level: str, folder: str | None) -> Path | None:
    """Send the log to standard error and to FILE in `folder`, which is made; the file's path.

    Raises UsageError where the folder cannot be written. Later on, a full disk stops no answer: lines are lost.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    path = None
    if folder is not None:
        path = Path(folder).expanduser() / FILE
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handlers.append(
                logging.handlers.RotatingFileHandler(
                    path, maxBytes=MOST_BYTES, backupCount=OLDER_FILES, encoding="utf-8"
                )
            )
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(
                f"cannot log to {str(path)!r}: {reason}; expected a folder to write to in --log-dir or CONDOR_LOG_DIR"
            ) from None
    logging.raiseExceptions = False
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    for handler in handlers:
        handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(handler)
    for name in OURS:
        logging.getLogger(name).setLevel(level)
    return path


class _OneLine(logging.Formatter):
    """A line an event: who can choose a word of a message cannot add lines to the log."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return super().formatMessage(record).replace("\r", "\\r").replace("\n", "\\n")
