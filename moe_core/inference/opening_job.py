"""Recordings that are being opened, each by a job of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from moe_core.errors import TraceError
from moe_core.inference.background_job import BackgroundJob
from moe_core.progress import Progress

if TYPE_CHECKING:
    from moe_core.inference.subjects import RoutingFile

AT_ONCE = 2
"""Recordings that are read at the same time; more wait for these."""
WAITING = "waiting for another file"
_slots = threading.Semaphore(AT_ONCE)
_running: dict[str, OpeningJob] = {}
_lock = threading.Lock()


class OpeningJob(BackgroundJob["RoutingFile"]):
    """One recording on its way to a subject."""

    def __init__(self, label: str, work: Callable[[Progress], RoutingFile]) -> None:
        """Start at once. `label` names the recording to people; `work` opens it."""
        super().__init__(
            label, work, _slots, WAITING,
            lambda reason: TraceError(f"{label!r} could not be read: {reason}; see the server's own messages"),
        )  # fmt: skip


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
