"""The folder of a run as a process holds it that trains the run with others, of which the first one writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from moe_core.runs.folder import RunFolder, RunStatus

if TYPE_CHECKING:
    import numpy as np

    from moe_core.config import Config
    from moe_core.data.document import Document
    from moe_core.routing.trace.trace import RoutingTrace


class ReadRun(RunFolder):
    """Reads as any RunFolder; whatever writes does nothing, for another process does it."""

    def create(self, config: Config) -> None:
        """Nothing."""

    def write_config(self, config: Config) -> None:
        """Nothing."""

    def write_status(self, status: RunStatus) -> None:
        """Nothing."""

    def append_metrics(self, *records: Mapping[str, Any]) -> None:
        """Nothing."""

    def rewind_metrics(self, step: int) -> None:
        """Nothing."""

    def write_probe(self, step: int, trace: RoutingTrace) -> None:
        """Nothing."""

    def write_held_out(
        self,
        validation: Sequence[Document],
        unseen: Sequence[Document],
        token_counts: np.ndarray,
        domains: Sequence[str],
    ) -> None:
        """Nothing."""

    def stop_requested(self) -> bool:
        """False: the one that writes is asked."""
        return False

    def clear_stop(self) -> None:
        """Nothing."""

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Nothing: the run is held by the one that writes."""
        yield
