"""The lock of a run: held by whoever trains it, dropped by the operating system when that process dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from moe_core.errors import RunError


class RunLock:
    """The lock file at `path`. Constructing it touches nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: tuple[int, int] | None = None
        """Device and inode of the file while this object holds it: another folder has another one."""

    @contextmanager
    def held(self, patience: float) -> Iterator[None]:
        """Hold it. Raises TimeoutError when another holds it for `patience` seconds, RunError when the disk refuses."""
        try:
            lock = self._file_lock(patience).acquire()
        except Timeout:
            raise TimeoutError from None
        except OSError as error:
            reason = error.strerror or error
            raise RunError(f"cannot lock {str(self._path)!r}: {reason}; check the folder and the disk") from None
        with lock:
            self._held = self._identity()
            try:
                yield
            finally:
                self._held = None

    def is_taken(self) -> bool:
        """True while some living process (this one included) holds it."""
        if not self._path.exists():
            return False
        try:
            with self._file_lock(0).acquire():
                return False
        except Timeout:
            return True
        except OSError:
            return False  # a folder we may not write in: nobody trains there

    def is_lost(self) -> bool:
        """True while this object holds it, but another file lies in its place, or none."""
        return self._held is not None and self._identity() != self._held

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _file_lock(self, timeout: float) -> FileLock:
        # A soft lock would outlive a killed trainer, so never fall back on one.
        return FileLock(self._path, timeout=timeout, thread_local=False, fallback_to_soft=False)
