"""What threads have read and written, so that their next request need not read it again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_core.inference.requests import Request
from moe_core.routing import Intervention

Key = tuple[str, Intervention | None]


@dataclass(frozen=True, eq=False)
class Prefix:
    """Tokens in a cache, and their routing."""

    token_ids: tuple[int, ...]
    experts: NDArray[np.int16]
    """[S, L, K]"""
    scores: NDArray[np.float32]
    """[S, L, K]"""
    cache: Any
    nbytes: int

    def common_with(self, token_ids: list[int]) -> int:
        """How many tokens at the beginning are the same in both."""
        count = 0
        for mine, theirs in zip(self.token_ids, token_ids, strict=False):
            if mine != theirs:
                break
            count += 1
        return count


class KeptPrefixes:
    """The newest prefix of each thread, within a bound of memory; the least recently used goes first.

    Any thread may call. A prefix under an intervention is another one than without it.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._prefixes: OrderedDict[Key, Prefix] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes of memory in use."""
        with self._lock:
            return sum(prefix.nbytes for prefix in self._prefixes.values())

    def take(self, request: Request) -> Prefix | None:
        """The prefix of a request's thread, if there is one: it belongs to the caller now."""
        with self._lock:
            return self._prefixes.pop((request.thread, request.change), None) if request.thread else None

    def put(self, request: Request, prefix: Prefix) -> None:
        """Keep it for the thread's next request. One that is larger than the bound is not kept."""
        with self._lock:
            self._prefixes.pop((request.thread, request.change), None)
            self._prefixes[request.thread, request.change] = prefix
            while sum(kept.nbytes for kept in self._prefixes.values()) > self._max_bytes:
                self._prefixes.popitem(last=False)

    def forget(self, thread: str) -> None:
        """Keep nothing of a thread, as when it is deleted."""
        with self._lock:
            for key in [key for key in self._prefixes if key[0] == thread]:
                del self._prefixes[key]
