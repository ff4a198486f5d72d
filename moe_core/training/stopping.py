"""Who may stop a trainer: Ctrl+C, SIGTERM, the run's stop file (the dashboard's button), or the caller."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from moe_core.progress import Progress
from moe_core.runs.folder import RunFolder
from moe_core.training.ranks import Ranks

CAUGHT = (signal.SIGINT, signal.SIGTERM)


class PreparationStopped(Exception):  # noqa: N818 - a request, not an error
    """Somebody asked to stop before the first step."""


class Stopper:
    """Collects requests to stop; the loop asks `requested()` between two steps."""

    def __init__(self, run: RunFolder, stop: Callable[[], bool] | None = None, ranks: Ranks | None = None) -> None:
        self._run = run
        self._stop = stop
        self.ranks = ranks or Ranks()
        self.signal: int | None = None
        """The signal that asked, if one did."""

    def requested(self) -> bool:
        """True once anyone asked."""
        return self.signal is not None or self._run.stop_requested() or (self._stop is not None and self._stop())

    def requested_anywhere(self) -> bool:
        """The same of any process of the training, which all ask at once."""
        return self.ranks.any_of(self.requested())

    @contextmanager
    def stopping_together(self) -> Iterator[None]:
        """Where PreparationStopped is raised inside in one process of the training, it is in all."""
        try:
            yield
        except PreparationStopped:
            self.ranks.any_of(True)
            raise
        if self.ranks.any_of(False):
            raise PreparationStopped

    @contextmanager
    def catching_signals(self) -> Iterator[None]:
        """Turn the first Ctrl+C or SIGTERM into a request; the second acts as usual. Handlers are put back at the end.

        Only the main thread may set handlers; in another one this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous: dict[int, Any] = {number: signal.getsignal(number) for number in CAUGHT}

        def request(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature signal calls
            self.signal = number
            signal.signal(number, previous[number])

        for number in CAUGHT:
            signal.signal(number, request)
        try:
            yield
        finally:
            for caught, handler in previous.items():
                signal.signal(caught, handler)

    def interrupting(self, progress: Progress) -> Progress:
        """`progress` for the long work before the loop: raises PreparationStopped once a stop is requested."""

        def report(stage: str, done: int, total: int) -> None:
            if self.requested():
                raise PreparationStopped
            progress(stage, done, total)

        return report
