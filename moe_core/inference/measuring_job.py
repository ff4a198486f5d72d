"""Measurements of a model that take minutes, each by a job of its own: whoever opens the page finds it as it is."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable

from moe_core.errors import RunError
from moe_core.inference.background_job import BackgroundJob
from moe_core.progress import Progress

WAITING = "waiting for another measurement"
STOP_PATIENCE_SECONDS = 5.0
_slots = threading.Semaphore(1)
_jobs: dict[str, MeasuringJob] = {}
_lock = threading.Lock()


class MeasuringJob(BackgroundJob[None]):
    """One measurement. It keeps what it finds itself, so that it has no result."""

    def __init__(self, label: str, work: Callable[[Progress], None]) -> None:
        """Start at once; one measures at a time, as they take all of the processor."""
        super().__init__(
            label, work, _slots, WAITING,
            lambda reason: RunError(f"{label} failed: {reason}; see the server's own messages"),
        )  # fmt: skip


def start_measuring(key: str, label: str, work: Callable[[Progress], None]) -> MeasuringJob:
    """The job that measures what `key` stands for: the one that is running already, or a new one."""
    with _lock:
        if key not in _jobs or not _jobs[key].is_running:
            _jobs[key] = MeasuringJob(label, work)
        return _jobs[key]


def measuring_job(key: str) -> MeasuringJob | None:
    """The job that was started last under this key, running or ended; None before the first."""
    with _lock:
        return _jobs.get(key)


def forget_measuring(key: str) -> None:
    """What became of a job that has ended was told, or is kept elsewhere."""
    with _lock:
        if key in _jobs and not _jobs[key].is_running:
            del _jobs[key]


@atexit.register
def _stop_all() -> None:
    """A thread inside the model must not outlive the interpreter's end."""
    for job in list(_jobs.values()):
        job.cancel()
        job.wait(STOP_PATIENCE_SECONDS)
