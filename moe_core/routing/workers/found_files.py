"""Which files are to be counted, in an order that everyone gets alike, and what each is called."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_core.errors import TraceError, UsageError
from moe_core.files import user_path
from moe_core.routing.opening import kind_of_file
from moe_core.routing.recordings.rank_files import MAX_FILES, rank_files

TRACES_OF_A_FOLDER = "*.parquet"


@dataclass(frozen=True)
class FoundFile:
    """One file to count."""

    path: Path
    name: str
    """Its path from the folder in which all files lie, with "/" on every system: sources are named by it."""
    from_folder: bool
    """Was it found in a folder that the user named? Of such only the traces are counted."""


def find_files(paths: Sequence[str | Path], out: Path | None = None) -> list[FoundFile]:
    """The files that `paths` stand for, each once, in the order of their names.

    A path is a file, a glob, or a folder: that stands for the Parquet files in it and in the folders below. `out`, the
    file to be written, is left out of a folder or glob where it has counts, as from the last time; anything else there,
    and a file that is named itself, is refused: it would be lost.
    Raises TraceError where nothing is there, UsageError for `out`.
    """
    if not paths:
        raise UsageError("no files to count; expected a folder of traces, a glob or files")
    places: dict[Path, tuple[Path, bool]] = {}
    folders: list[Path] = []
    target = None if out is None else out.resolve()
    for given in paths:
        path = user_path(given)
        if path.is_file() and path.resolve() == target:
            raise UsageError(f"--out {str(out)!r} is one of the files to count; choose another file")
        files = _in_folder(path) if path.is_dir() else rank_files(path, "*")
        folders.append(path if path.is_dir() else _common([file.parent for file in files]))
        for file in files:
            if file.resolve() == target:
                if kind_of_file(file) != "counts":
                    raise UsageError(f"--out {str(out)!r} is one of the files to count; choose another file")
            else:
                places.setdefault(file.resolve(), (file, path.is_dir()))
    if not places:
        raise TraceError(f"no file to count but {str(out)!r} itself, which is to be written; choose another folder")
    if len(places) > MAX_FILES:
        raise TraceError(f"{len(places):,} files; expected {MAX_FILES:,} at most, so count them folder by folder")
    base = _common(folders)
    found = [FoundFile(file, _name(file, base), inside) for file, inside in places.values()]
    return sorted(found, key=lambda one: one.name)


def _in_folder(folder: Path) -> list[Path]:
    files = [file for file in folder.rglob(TRACES_OF_A_FOLDER) if file.is_file()]
    if not files:
        raise TraceError(
            f"no file {TRACES_OF_A_FOLDER} in the folder {str(folder)!r} or below it; expected traces, or for other "
            f"recordings a glob such as {str(folder / '*.jsonl')!r}"
        )
    return files


def _common(folders: Sequence[Path]) -> Path:
    """The folder that all of them are or lie in."""
    return Path(os.path.commonpath([folder.absolute() for folder in folders]))


def _name(file: Path, base: Path) -> str:
    return Path(os.path.normpath(file.absolute())).relative_to(os.path.normpath(base)).as_posix()
