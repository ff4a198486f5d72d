"""A file that is replaced as a whole: a crash, a kill or a full disk leaves the old one or the new one, never half."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

from moe_core.errors import UsageError

TEMPORARY_PREFIX = ".tmp-"
MOST_SHOWN = 200
"""Characters of a path that a message repeats."""


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A new file to write; on success it is synced and takes the place of `path`, on any failure it is removed.

    A process killed in between leaves it behind in the same folder, under TEMPORARY_PREFIX. Raises OSError.
    """
    temporary, file = _locked_temporary(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def user_path(given: str | Path) -> Path:
    """What a user named, with ~ as the home it stands for; it need not be there.

    Raises UsageError, in one line, for what can be no path: NUL, a name too long, a home that nobody has, a circle of
    links.
    """
    text = str(given)
    shown = repr(text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "...")
    try:
        path = Path(text).expanduser()
        path.exists()
        path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).partition(" from ")[0].rstrip(".")
        raise UsageError(f"{shown} cannot be used as a path: {reason}; expected one of a file or folder") from None
    return path


def private_folder(name: str = "") -> Path:
    """A folder of this user's cache that nobody else can look into: what was opened, and what was made of it.

    It is below the one that MOESCOPE_CACHE names, else "moescope" in the user's cache folder. Where that cannot be
    written, or is somebody else's, a folder that goes with this process takes its place.
    """
    given = os.environ.get("MOESCOPE_CACHE")
    try:
        base = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moescope"
        return _private(base, name)
    except (OSError, RuntimeError):  # RuntimeError: nobody's home is known
        return _private(Path(_folder_of_process().name), name)


def is_remembered() -> bool:
    """Whether what lies in private_folder is there after a restart."""
    return not private_folder().is_relative_to(_folder_of_process().name)


def _private(base: Path, name: str) -> Path:
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    base.chmod(0o700)  # PermissionError where it is somebody else's
    folder = base / name
    folder.mkdir(mode=0o700, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "cannot be written", str(folder))
    return folder.resolve()


@cache
def _folder_of_process() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="moescope-")


def remove_stale(folder: Path) -> None:
    """Remove what killed writers left behind in `folder`, and no file that a living one is writing: that is locked.

    A temporary folder has no lock of its own: only the holder of a run's lock writes one there, and may call this.
    """
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.is_symlink() or not path.is_file():
                path.unlink(missing_ok=True)
            else:
                with path.open("rb") as file:
                    lock(file, wait=False)  # OSError: its writer lives
                    path.unlink(missing_ok=True)


def _locked_temporary(path: Path) -> tuple[Path, BinaryIO]:
    """A new temporary file beside `path`, locked as long as it is open, so that nobody takes it for a left one."""
    while True:
        temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
        file = temporary.open("wb")
        with suppress(OSError):  # a file system without locks
            lock(file, wait=True)
        if temporary.exists():
            return temporary, file
        file.close()  # a cleaner was quicker than the lock


def lock(file: BinaryIO, *, wait: bool) -> None:
    """Take the file for this process until it is closed. Raises OSError if another one has it and `wait` is false."""
    if sys.platform != "win32":  # which does not remove open files anyway
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def fsync(path: Path) -> None:
    """Make a file's content, or for a folder the names in it, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
