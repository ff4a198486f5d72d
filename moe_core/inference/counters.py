"""What a scheduler has done so far, in numbers that only grow, and what it is doing."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moe_core.inference.protocol import ReadTokens
from moe_core.inference.row import Row


@dataclass(frozen=True, eq=False)
class Counts:
    """At one moment. Every request that was let in is waiting, running, or has ended in one of the ways named here."""

    accepted: int = 0
    refused: int = 0
    """Requests that were not let in, the queue being full."""
    completed: int = 0
    cancelled: int = 0
    failed: int = 0
    waiting: int = 0
    """Length of the queue."""
    running: int = 0
    prompt_tokens: int = 0
    """Of requests whose prompt is read, cut to the window."""
    reused_tokens: int = 0
    """Of these, what a kept cache spared the model."""
    written_tokens: int = 0
    passes: int = 0
    """Forward passes of the model."""
    tokens_per_expert: NDArray[np.int64] | None = None
    """[L, E] how often each expert was chosen, in prompts, in what was written, and in what was read anew because the
    window was full. None before the first pass."""


class Counters:
    """Counts that several threads read while one computes."""

    def __init__(self, num_layers: int, num_experts: int) -> None:
        self._lock = threading.Lock()
        self._counts = Counts()
        self._chosen = np.zeros((num_layers, num_experts + 1), np.int64)
        """Column 0 counts unused slots."""
        self._offsets = np.arange(num_layers)[:, None] * (num_experts + 1) + 1

    def add(self, **more: int) -> None:
        """Add to counts by their names."""
        with self._lock:
            self._counts = replace(self._counts, **{name: getattr(self._counts, name) + n for name, n in more.items()})

    def add_pass(self, found: Sequence[ReadTokens]) -> None:
        """Count what a pass has read."""
        indices = np.concatenate([read.experts for read in found])
        chosen = np.bincount((indices + self._offsets).ravel(), minlength=self._chosen.size)
        with self._lock:
            self._chosen += chosen.reshape(self._chosen.shape)
            self._counts = replace(self._counts, passes=self._counts.passes + 1)

    def add_end(self, row: Row) -> None:
        """Count a request that has ended."""
        ended = row.ended
        way = "failed" if isinstance(ended, Exception) else "cancelled" if ended == "cancelled" else "completed"
        self.add(**{way: 1})

    def snapshot(self, waiting: int, running: int) -> Counts:
        """All of it."""
        with self._lock:
            chosen = self._chosen[:, 1:].copy() if self._counts.passes else None
            return replace(self._counts, waiting=waiting, running=running, tokens_per_expert=chosen)
