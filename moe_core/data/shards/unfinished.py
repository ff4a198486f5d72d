"""What a preparation has done so far, beside its shards: enough to go on after a kill at any moment."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter

from moe_core.data.shards.shard_index import INDEX, TOKENIZER, Shard, is_prepared
from moe_core.errors import DataError, RunError, UsageError
from moe_core.files import TEMPORARY_PREFIX, lock, remove_stale
from moe_core.runs.checksum import read_typed, with_checksum
from moe_core.runs.files import translate_os_errors, write_atomic

JOURNAL, CODES, LOCK = "unfinished.json", "unfinished.splits.bin", "unfinished.lock"


@dataclass
class Journal:
    """What is known after each step; every step is written only when all that it tells of is on the disk."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    settings: dict[str, str | int | list[list[str | int]]]
    """What was asked for, and of which files: what goes on must be the same."""
    codes_sha256: str | None = None
    """Of the file that has the split of every document; None before they are decided."""
    documents: int = 0
    """Of all files."""
    bytes: int = 0
    """UTF-8 bytes of their text."""
    domains: list[str] = field(default_factory=list)
    """Of the training split, sorted."""
    part_domains: list[str] = field(default_factory=list)
    part_totals: dict[str, int] = field(default_factory=dict)
    """See sources.PlainTextParts."""
    tokenizer_sha256: str | None = None
    """Of tokenizer.json; None before it is there."""
    tokenizer_bytes: int = 0
    """Of the text that it learned from; 0 for one that was given."""
    done: int = 0
    """Documents that are in closed shards, or left out."""
    done_bytes: int = 0
    shards: list[Shard] = field(default_factory=list)
    token_counts: list[int] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Raises RunError when the disk refuses."""
        write_atomic(folder / JOURNAL, with_checksum(asdict(self), indent=None))

    def write_codes(self, folder: Path, codes: NDArray[np.uint8]) -> None:
        """Keep the split of every document, and then say so."""
        content = codes.tobytes()
        write_atomic(folder / CODES, content)
        self.codes_sha256 = hashlib.sha256(content).hexdigest()
        self.write(folder)

    def codes(self, folder: Path) -> NDArray[np.uint8]:
        """[documents]; raises DataError unless they are what was written."""
        return np.frombuffer(_checked(folder / CODES, self.codes_sha256), dtype=np.uint8)

    def tokenizer_json(self, folder: Path) -> str:
        """tokenizer.json; raises DataError unless it is what was written."""
        return _checked(folder / TOKENIZER, self.tokenizer_sha256).decode()


@contextmanager
def unfinished(
    folder: Path, settings: dict[str, str | int | list[list[str | int]]], *, resume: bool
) -> Iterator[Journal]:
    """The journal of a folder that is being written, alone; new, or with `resume` as it was left. Left over are no
    files that it does not tell of. Raises UsageError where there is something else, or nothing to go on with."""
    if is_prepared(folder) and not (resume and (folder / JOURNAL).exists()):
        raise UsageError(f"{str(folder)!r} is prepared already (it has {INDEX}); choose another --out")
    begun = (folder / JOURNAL).exists()
    if resume and not begun and not _is_barely_begun(folder):
        raise UsageError(f"{str(folder)!r} holds nothing unfinished to go on with; leave out --resume")
    if not resume and begun:
        raise UsageError(f"{str(folder)!r} holds an unfinished preparation; add --resume, or choose another --out")
    if not resume and folder.exists() and not _is_barely_begun(folder) and (folder.is_file() or any(folder.iterdir())):
        raise UsageError(f"{str(folder)!r} is there already and not empty; choose another --out")
    with translate_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("wb")
    with file:
        try:
            lock(file, wait=False)
        except OSError:
            raise UsageError(f"{str(folder)!r} is being prepared by another process; wait for it, or stop it") from None
        journal = _read(folder) if begun else Journal(settings)
        if journal.settings != settings:
            changed = sorted(key for key in settings if journal.settings.get(key) != settings[key])
            raise UsageError(
                f"{str(folder)!r} was begun with other {', '.join(changed)}; --resume needs the same inputs and options"
            )
        if begun:
            _remove_unknown(folder, journal)
        else:
            journal.write(folder)
        yield journal
    for name in (CODES, LOCK, JOURNAL):
        (folder / name).unlink(missing_ok=True)


def _is_barely_begun(folder: Path) -> bool:
    """Whether a process was killed here before it could write its journal."""
    return (folder / LOCK).exists() and all(
        path.name == LOCK or path.name.startswith(TEMPORARY_PREFIX) for path in folder.iterdir()
    )


def _read(folder: Path) -> Journal:
    path = folder / JOURNAL
    try:
        return read_typed(path.read_bytes(), path, _reader(), "is no journal of this version", "start anew")[0]
    except RunError as error:
        raise DataError(str(error)) from None


def _remove_unknown(folder: Path, journal: Journal) -> None:
    """Shards that were open when the process died, and what its writers left."""
    known = {name for shard in journal.shards for name in (shard.file, shard.documents_file)}
    with translate_os_errors(folder):
        for pattern in ("*.bin", "*.parquet"):
            for path in folder.glob(pattern):
                if path.name not in known and path.name != CODES and not is_prepared(folder):
                    path.unlink()
        if any(folder.glob(f"{TEMPORARY_PREFIX}*")):
            remove_stale(folder)


def _checked(path: Path, sha256: str | None) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror or error}; start anew") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(f"{str(path)!r} is not what was written; start anew")
    return content


@cache
def _reader() -> TypeAdapter[Journal]:
    return TypeAdapter(Journal)
