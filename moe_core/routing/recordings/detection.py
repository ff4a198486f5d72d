"""Which format a file of recorded routing is in: by what the user says, else by its first bytes and its content."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from moe_core.errors import TraceError, UsageError
from moe_core.recording_formats import ANSWER_KINDS, FILE_KINDS, FORMAT_NAMES, RECORDING_FORMATS, RecordingFormat
from moe_core.routing.recordings.pieces import reason
from moe_core.routing.recordings.rank_files import rank_files

TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The pickled number with which torch before 1.6 begins its files."""


def format_at(path: Path, asked: str) -> tuple[RecordingFormat | None, str]:
    """The format of what lies at `path`, a file, a folder or a glob of rank files, and the kind of its first file.

    No format for arrays and for answers of servers, which tell themselves (see responses.py).
    Raises TraceError for what is missing or of another kind, UsageError for a format that is unknown.
    """
    if asked not in FORMAT_NAMES:
        raise UsageError(f"format is {asked!r}; expected one of {', '.join(FORMAT_NAMES)}")
    named = next((one for one in RECORDING_FORMATS if one.name == asked), None)
    if named is None and path.is_dir():
        named = _format_of_folder(path)
    if named is not None:
        first = rank_files(path, named.side_by_side)[0] if named.side_by_side else path
        kind = file_kind(first)
        if kind not in named.file_kinds:
            expected = FILE_KINDS[named.file_kinds[-1]]
            raise TraceError(f"{str(first)!r} is {FILE_KINDS[kind]}; for {named.name} expected {expected}")
        return (None if named.file_kinds == ANSWER_KINDS else named), kind
    first = rank_files(path, "*")[0]
    kind = file_kind(first)
    found = next((one for one in _formats_of_files(kind) if _recognizes(one, first)), None)
    if first != path and (found is None or not found.side_by_side):
        raise TraceError(f"{str(path)!r} stands for several files; expected one file, for they are read one by one")
    if found is None and kind not in ANSWER_KINDS:
        names = ", ".join(one.title for one in _formats_of_files(kind))
        raise TraceError(f"{str(path)!r} is {FILE_KINDS[kind]}, but of none of the known recordings: {names}")
    return found, kind


def file_kind(path: Path) -> str:
    """A name of FILE_KINDS. Raises TraceError where the file is missing or cannot be read."""
    if not path.is_file():
        raise TraceError(f"no file at {str(path)!r}; expected recorded routing, see docs/trace-format.md")
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError as error:
        raise TraceError(f"cannot read {str(path)!r}: {reason(error)}; check the path") from None
    if not start:
        raise TraceError(f"{str(path)!r} is empty; expected recorded routing, see docs/trace-format.md")
    name_of_first_entry = start[30 : 30 + int.from_bytes(start[26:28], "little")]  # of a zip archive
    if start.startswith(TORCH_LEGACY) or (start.startswith(b"PK") and name_of_first_entry.endswith(b"/data.pkl")):
        return "torch"
    if start.startswith(b"\x93NUMPY"):
        return "npy"
    if (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05") or path.suffix.lower() in (".pkl", ".pickle"):
        return "pickle"
    if start.startswith(b"GGUF") or start[8:12] == b"blk.":  # an importance matrix from before GGUF: refused by name
        return "gguf"
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith(b"PK") or start.lstrip()[:1] in (b"{", b"[") or path.suffix.lower() in (".json", ".jsonl"):
        return "json"
    return "text"


def _format_of_folder(path: Path) -> RecordingFormat:
    for one in RECORDING_FORMATS:
        if one.side_by_side and (files := [file for file in path.glob(one.side_by_side) if file.is_file()]):
            first = min(files)
            if file_kind(first) in one.file_kinds and _recognizes(one, first):
                return one
    patterns = ", ".join(dict.fromkeys(one.side_by_side for one in RECORDING_FORMATS if one.side_by_side))
    raise TraceError(f"no recording in the folder {str(path)!r}; expected files of ranks: {patterns}")


def _formats_of_files(kind: str) -> list[RecordingFormat]:
    return [one for one in RECORDING_FORMATS if kind in one.file_kinds and one.file_kinds != ANSWER_KINDS]


def _recognizes(one: RecordingFormat, path: Path) -> bool:
    """Whether a reader takes the file for its own; one that does not look takes every file of its kind."""
    look = getattr(import_module(one.reader), "is_recording", None)
    return look is None or bool(look(path))
