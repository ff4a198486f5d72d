"""A file that is replaced as a whole: a crash, a kill or a full disk leaves the old one or the new one, never half."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

TEMPORARY_PREFIX = ".tmp-"


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A new file to write; on success it is synced and takes the place of `path`, on any failure it is removed.

    A process killed in between leaves it behind in the same folder, under TEMPORARY_PREFIX. Raises OSError.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Make a file's content, or for a folder the names in it, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
