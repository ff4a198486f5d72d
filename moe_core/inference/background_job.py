"""Work in one background thread, whose progress may be read as often as one likes.

A page that runs again, a browser that is closed or another session does not disturb it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from moe_core.errors import MoescopeError
from moe_core.progress import Progress, stage_name

Result = TypeVar("Result")


class CancelledError(Exception):
    """Somebody pressed Cancel."""


@dataclass(frozen=True)
class Reached:
    """How far a job is."""

    stage: str
    """What is being done: "checking", "writing"."""
    share: float
    """Of this stage, 0 to 1."""
    seconds_left: float | None
    """Of this stage; None while that cannot be told."""


class BackgroundJob(Generic[Result]):
    """One piece of work. It has ended when `is_running` is false: then it has a result, an error, or was cancelled."""

    def __init__(
        self,
        label: str,
        work: Callable[[Progress], Result],
        slots: threading.Semaphore,
        waiting: str,
        fault: Callable[[str], MoescopeError],
    ) -> None:
        """Start at once. `label` names it to people; `work` ends early where its progress raises; as many jobs as there
        are `slots` run together, the others say that they are `waiting`; `fault` words an error that is not ours."""
        self.label = label
        self.result: Result | None = None
        self.error: MoescopeError | None = None
        self.was_cancelled = False
        self._work, self._slots, self._waiting, self._fault = work, slots, waiting, fault
        self._stop, self._ended = threading.Event(), threading.Event()
        self._began = self._stage_began = time.monotonic()
        self._at = ("reading", 0, 0)
        self._thread = threading.Thread(target=self._run, name="background", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """False once it has ended."""
        return not self._ended.is_set()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._began

    def wait(self, seconds: float) -> bool:
        """Wait until it has ended, at most so long. Returns whether it has."""
        return self._ended.wait(seconds)

    def cancel(self) -> None:
        """Ask it to end; it does at its next step, and leaves nothing behind but what it had kept."""
        self._stop.set()

    def reached(self) -> Reached:
        """How far it is now."""
        stage, done, total = self._at
        share = min(1.0, max(0.0, done / total)) if total > 0 else 0.0
        elapsed = time.monotonic() - self._stage_began
        return Reached(stage, share, elapsed * (1 - share) / share if share > 0 else None)

    def _report(self, stage: str, done: int, total: int) -> None:
        if self._stop.is_set():
            raise CancelledError
        if stage_name(stage) != stage_name(self._at[0]):
            self._stage_began = time.monotonic()
        self._at = (stage, done, total)

    def _run(self) -> None:
        try:
            while not self._slots.acquire(timeout=0.2):
                self._report(self._waiting, 0, 0)
            try:
                self.result = self._work(self._report)
            finally:
                self._slots.release()
        except CancelledError:
            self.was_cancelled = True
        except MoescopeError as error:
            self.error = error
        except Exception as error:
            logging.getLogger(__name__).exception("%r failed", self.label)
            self.error = self._fault((str(error) or type(error).__name__).partition("\n")[0])
        finally:
            self._ended.set()
