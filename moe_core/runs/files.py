"""Writing so that a crash, a kill or a full disk leaves the old file or the new one, never half of either."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from moe_core.errors import NoSpaceError, RunError
from moe_core.files import TEMPORARY_PREFIX, fsync, replaced

HASH_CHUNK_BYTES = 1 << 20
MOST_BYTES = 64 << 20
"""Of any file of a run that is read whole and is no table; real ones have less than a tenth."""
OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomic(path: Path, content: bytes) -> None:
    """Replace `path` by `content`: temporary file beside it, fsync, os.replace, fsync of the folder.

    Raises RunError when the disk refuses; the old file is then untouched and the temporary one gone.
    """
    with translate_os_errors(path), replaced(path) as file:
        file.write(content)


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder; on success every file in it is synced and it becomes `target`, which must not exist.
    The folder around it must: one that was removed is not made again.

    On any failure the temporary folder is removed. A process killed in between leaves it behind under
    TEMPORARY_PREFIX; `remove_stale` clears it later.
    """
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    with translate_os_errors(target):
        try:
            temporary.mkdir()
            yield temporary
            for file in sorted(temporary.iterdir()):
                fsync(file)
            fsync(temporary)
            temporary.rename(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        fsync(target.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder so that a kill in between leaves no half of it under its own name."""
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):
        path.rename(temporary)
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write `path` into one line for the user."""
    try:
        yield
    except OSError as error:
        if error.errno in OUT_OF_SPACE:
            raise NoSpaceError(f"no space left to write {str(path)!r}; free some disk space and try again") from None
        raise RunError(
            f"cannot write {str(path)!r}: {error.strerror or error}; check the folder's permissions and the disk"
        ) from None


def read_file(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """The content of an ordinary file of a run.

    Raises FileNotFoundError, or RunError for what is none (a folder, a pipe, a device, a circle of links), cannot be
    read, or is larger than any such file ever is: nothing waits, and no more memory is taken.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise RunError(f"{str(path)!r} is not an ordinary file; restore it from a copy")
            if found.st_size > most_bytes:
                raise RunError(
                    f"{str(path)!r} has {found.st_size:,} bytes, at most {most_bytes:,} were expected; "
                    "restore it from a copy"
                )
            return file.read(most_bytes)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise RunError(
            f"cannot read {str(path)!r}: {reason}; check its permissions, or restore it from a copy"
        ) from None


def check_ordinary(path: Path) -> None:
    """Raise RunError where something lies at `path` that is no ordinary file; opening a pipe would wait for ever."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise RunError(f"{str(path)!r} is not an ordinary file; restore it from a copy, or delete it")
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunError(f"cannot read {str(path)!r}: {error.strerror or error}; delete it") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object from `path`. Raises FileNotFoundError, or RunError when it is not a JSON object."""
    return json_object(read_file(path), path)


def json_object(content: bytes, path: Path) -> dict[str, Any]:
    """The JSON object that a file of a run holds. Raises RunError."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise RunError(f"{str(path)!r} is not valid JSON; it was truncated or edited, restore it from a copy") from None
    if not isinstance(value, dict):
        raise RunError(f"{str(path)!r} holds a {type(value).__name__}, expected a JSON object; restore it from a copy")
    return value


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
