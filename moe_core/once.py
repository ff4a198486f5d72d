"""A value that is made once, whoever asks for it, by work that its cache does not do itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class Once(Generic[T]):
    """The place of the value."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    made: T | None = None

    def once(self, make: Callable[[], T]) -> T:
        """What `make` returned at the first call; another thread that asks meanwhile waits for it. Raises what `make`
        raises, and the next call tries again."""
        with self.lock:
            if self.made is None:
                self.made = make()
            return self.made
