"""Writing so that a crash, a kill or a full disk leaves the old file or the new one, never half of either."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from moe_core.errors import RunError
from moe_core.files import TEMPORARY_PREFIX, fsync, replaced

HASH_CHUNK_BYTES = 1 << 20
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

    On any failure the temporary folder is removed. A process killed in between leaves it behind under
    TEMPORARY_PREFIX; `remove_stale` clears it later.
    """
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    with translate_os_errors(target):
        try:
            temporary.mkdir(parents=True)
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


def remove_stale(parent: Path) -> None:
    """Remove what a killed writer left behind. Only the holder of the run's lock may call this."""
    for path in parent.glob(f"{TEMPORARY_PREFIX}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write `path` into one line for the user."""
    try:
        yield
    except OSError as error:
        if error.errno in OUT_OF_SPACE:
            raise RunError(
                f"no space left to write {str(path)!r}; what was saved before is intact: free some disk space, "
                "then continue with --resume"
            ) from None
        raise RunError(
            f"cannot write {str(path)!r}: {error.strerror or error}; check the folder's permissions and the disk"
        ) from None


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object from `path`. Raises FileNotFoundError, or RunError when it is not a JSON object."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RunError(f"cannot read {str(path)!r}: {error.strerror or error}; check its permissions") from None
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
