"""A recording that is being opened: one background thread, whose progress may be read as often as one likes.

A page that runs again, a browser that is closed or another session does not disturb it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moe_core.errors import MoescopeError, TraceError
from moe_core.progress import Progress, stage_name

if TYPE_CHECKING:
    from moe_core.inference.subjects import RoutingFile

AT_ONCE = 2
"""Recordings that are read at the same time; more wait for these."""
WAITING = "waiting for another file"
_slots = threading.Semaphore(AT_ONCE)
_running: dict[str, OpeningJob] = {}
_lock = threading.Lock()


class _CancelledError(Exception):
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


class OpeningJob:
    """One recording on its way to a subject. It has ended when `is_running` is false: then it has a result, an error,
    or was cancelled."""

    def __init__(self, label: str, work: Callable[[Progress], RoutingFile]) -> None:
        """Start at once. `label` names the recording to people; `work` opens it."""
        self.label = label
        self.result: RoutingFile | None = None
        self.error: MoescopeError | None = None
        self.was_cancelled = False
        self._work = work
        self._stop, self._ended = threading.Event(), threading.Event()
        self._began = self._stage_began = time.monotonic()
        self._at = ("reading", 0, 0)
        self._thread = threading.Thread(target=self._run, name="opening", daemon=True)
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
        """Ask it to end; it does at its next step, and leaves nothing behind."""
        self._stop.set()

    def reached(self) -> Reached:
        """How far it is now."""
        stage, done, total = self._at
        share = min(1.0, max(0.0, done / total)) if total > 0 else 0.0
        elapsed = time.monotonic() - self._stage_began
        return Reached(stage, share, elapsed * (1 - share) / share if share > 0 else None)

    def _report(self, stage: str, done: int, total: int) -> None:
        if self._stop.is_set():
            raise _CancelledError
        if stage_name(stage) != stage_name(self._at[0]):
            self._stage_began = time.monotonic()
        self._at = (stage, done, total)

    def _run(self) -> None:
        try:
            while not _slots.acquire(timeout=0.2):
                self._report(WAITING, 0, 0)
            try:
                self.result = self._work(self._report)
            finally:
                _slots.release()
        except _CancelledError:
            self.was_cancelled = True
        except MoescopeError as error:
            self.error = error
        except Exception as error:
            logging.getLogger(__name__).exception("a recording could not be opened")
            reason = (str(error) or type(error).__name__).partition("\n")[0]
            self.error = TraceError(f"{self.label!r} could not be read: {reason}; see the server's own messages")
        finally:
            self._ended.set()


def start_opening(key: str, label: str, work: Callable[[Progress], RoutingFile]) -> OpeningJob:
    """The job that opens what `key` stands for: the one that is running already, or a new one."""
    with _lock:
        for ended in [name for name, job in _running.items() if not job.is_running]:
            del _running[ended]
        if key not in _running:
            _running[key] = OpeningJob(label, work)
        return _running[key]


def running_jobs() -> list[OpeningJob]:
    """All that is being opened on this server, the oldest first."""
    with _lock:
        return [job for job in _running.values() if job.is_running]
