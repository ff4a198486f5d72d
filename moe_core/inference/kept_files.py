"""Recordings as files of ours, kept in the user's cache so that the same recording opens at once the next time.

A kept file goes by what it was made of: the files with their sizes and times (of an upload, its content), what the user
said about them, and the readers themselves, so that a mended reader reads anew. The folder is the user's alone and
bounded: what was opened longest ago goes first.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from moe_core import recording_formats
from moe_core.errors import TraceError
from moe_core.files import private_folder, remove_stale, user_path
from moe_core.progress import Progress, silent
from moe_core.recording_formats import RECORDING_FORMATS, title_of
from moe_core.routing import recordings
from moe_core.routing.opening import OURS, kind_of_file, open_routing
from moe_core.routing.recordings.rank_files import rank_files
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.routing.trace.trace import RoutingTrace

MOST_KEPT_BYTES = 4 << 30
"""Of all kept files together; those that are open stay even beyond it."""
FOLDER = "converted"
UNFINISHED = "unfinished-"
LONGEST_WRITING_SECONDS = 86_400
"""After which an unfinished file is one that a killed writer left."""
Holds = Literal["tokens", "counts"]
"""Routing token by token, a trace, or counts."""
Number = Annotated[int, Field(ge=0, le=32_767)]


@dataclass(frozen=True)
class Said:
    """What the user says about a recording that it may not say itself; as the options of routing.open_routing."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    format: Annotated[str, Field(max_length=100)] = "auto"
    num_experts: Number | None = None
    top_k: Number | None = None
    layers: Annotated[tuple[Number, ...], Field(max_length=10_000)] | None = None
    token_ids: Annotated[str, Field(max_length=4096)] | None = None
    """Path of a file of token ids."""
    tokenizer: Annotated[str, Field(max_length=4096)] | None = None
    """Path of a tokenizer.json, or of the folder that has one."""

    def paths(self) -> list[Path]:
        """The files that are named."""
        return [user_path(path).resolve() for path in (self.token_ids, self.tokenizer) if path is not None]


@dataclass(frozen=True)
class FileOfOurs:
    """A trace or counts in a file that RoutingTrace.open or RoutingCounts.load reads."""

    path: Path
    holds: Holds
    format: str
    """ "trace" or "counts" of a file that was ours before, else the name of a recording's format."""

    @property
    def title(self) -> str:
        """What made it, for people: "SGLang routed_experts", "trace"."""
        return self.format if self.format in OURS.values() else title_of(self.format)


def file_of_ours(
    place: Path,
    said: Said = Said(),
    *,
    is_upload: bool = False,
    in_use: Collection[Path] = (),
    progress: Progress = silent,
) -> FileOfOurs:
    """The file itself where it is ours, else what the recording at `place`, a file, folder or glob, was converted into.

    An upload goes with the server, so its file of ours is kept too. Files `in_use` are not removed to make room.
    Raises TraceError or UsageError, in one line, where it cannot be read.
    """
    if is_kept_file(place):
        return _kept_at(place)
    ours = kind_of_file(place) if said.format == "auto" else None
    if ours is not None and not is_upload:
        return _checked(FileOfOurs(place, "counts" if ours == "counts" else "tokens", ours))
    key = _key(place, said, is_upload)
    folder = private_folder(FOLDER)
    if (kept := _find(folder, key)) is not None:
        return kept
    _check_room(place, folder)
    made = _keep_upload(place, ours, folder, key) if ours is not None else _convert(place, said, folder, key, progress)
    _make_room(folder, {made.path, *in_use})
    return made


def is_kept_file(path: Path) -> bool:
    """Whether it is a copy of ours in the cache, whose path says nothing to who opened it."""
    return path.parent == private_folder(FOLDER)


def forget_kept_files(in_use: Collection[Path] = ()) -> None:
    """Remove all kept files but those in use."""
    _make_room(private_folder(FOLDER), in_use, most_bytes=0)


def _convert(place: Path, said: Said, folder: Path, key: str, progress: Progress) -> FileOfOurs:
    from moe_core.inference.tokenizer_texts import TokenizerTexts

    unfinished = _unfinished(folder)
    found = open_routing(
        place,
        format=said.format,
        convert_to=unfinished,
        token_ids=said.token_ids,
        num_experts=said.num_experts,
        top_k=said.top_k,
        layers=said.layers,
        texts=None if said.tokenizer is None else TokenizerTexts(user_path(said.tokenizer)),
        progress=progress,
    )
    holds: Holds = "counts" if isinstance(found.routing, RoutingCounts) else "tokens"
    path = folder / f"{key}.{found.format}.{holds}.parquet"
    if isinstance(found.routing, RoutingCounts):
        found.routing.save(path)
    else:
        unfinished.replace(path)
    return FileOfOurs(path, holds, found.format)


def _keep_upload(place: Path, ours: str, folder: Path, key: str) -> FileOfOurs:
    """A copy of an uploaded file that is ours already."""
    holds: Holds = "counts" if ours == "counts" else "tokens"
    _checked(FileOfOurs(place, holds, ours))
    path = folder / f"{key}.{ours}.{holds}.parquet"
    unfinished = _unfinished(folder)
    shutil.copyfile(place, unfinished)
    unfinished.replace(path)
    return FileOfOurs(path, holds, ours)


def _unfinished(folder: Path) -> Path:
    """A name of this writer's own, so that two servers may write the same at once; no kept file has such a name."""
    return folder / f"{UNFINISHED}{uuid.uuid4().hex}.parquet"


def _checked(file: FileOfOurs) -> FileOfOurs:
    """The file. Raises TraceError where it cannot be opened."""
    if file.holds == "counts":
        RoutingCounts.load(file.path)
    else:
        RoutingTrace.open(file.path)
    return file


def _find(folder: Path, key: str) -> FileOfOurs | None:
    """What was kept under this key, marked as just used; a damaged one is removed."""
    for path in folder.glob(f"{key}.*.parquet"):
        try:
            return _kept_at(path)
        except TraceError:
            with suppress(OSError):
                path.unlink()
    return None


def _kept_at(path: Path) -> FileOfOurs:
    """A kept file, whose name says what it is. Raises TraceError where it is damaged, or gone to make room."""
    format, _, holds = path.name.partition(".")[2].removesuffix(".parquet").rpartition(".")
    try:
        os.utime(path)
    except OSError:
        raise TraceError("what was kept of it is gone, as newer files took its room; open the original again") from None
    return _checked(FileOfOurs(path, "counts" if holds == "counts" else "tokens", format))


def _make_room(folder: Path, in_use: Collection[Path], most_bytes: int | None = None) -> None:
    """Remove what was used longest ago until no more than `most_bytes` are left, and what killed writers left."""
    remove_stale(folder)
    files = []
    for path in folder.glob("*.parquet"):
        with suppress(OSError):  # another server was quicker
            entry = path.stat()
            if path.name.startswith(UNFINISHED) and time.time() - entry.st_mtime < LONGEST_WRITING_SECONDS:
                continue
            files.append((entry.st_mtime_ns, entry.st_size, path))
    left = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if left <= (MOST_KEPT_BYTES if most_bytes is None else most_bytes):
            return
        if path not in in_use:
            with suppress(OSError):
                path.unlink()
            left -= size


def _check_room(place: Path, folder: Path) -> None:
    """A trace takes about as much as what it is made of. Raises TraceError where the disk is too full for that."""
    wanted = sum(size for *_, size in _stamps(place))
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise TraceError(
            f"{place.name!r} has {wanted / 1e9:.1f} GB and {str(folder)!r} only {free / 1e9:.1f} GB free; free some "
            "space, or name another folder in MOESCOPE_CACHE"
        )


def _stamps(place: Path) -> list[tuple[str, int, int, int]]:
    """Path, inode, time of change in ns and size of every file at `place`. Raises TraceError where there is none."""
    if place.is_dir():
        patterns = {"*", *(one.side_by_side for one in RECORDING_FORMATS if one.side_by_side)}
        files = sorted({file for pattern in patterns for file in place.glob(pattern) if file.is_file()})
    else:
        files = rank_files(place, "*")
    try:
        return [(str(file), (entry := file.stat()).st_ino, entry.st_mtime_ns, entry.st_size) for file in files]
    except OSError as error:
        raise TraceError(f"cannot read {str(place)!r}: {error.strerror or error}; check the path") from None


def _key(place: Path, said: Said, is_upload: bool) -> str:
    """What a kept file goes by."""
    if is_upload:
        made_of = [(Path(path).name, _digest(Path(path))) for path, *_ in _stamps(place)]
    else:
        made_of = [repr(stamp) for stamp in _stamps(place)]  # type: ignore[misc]
    named = [repr(stamp) for path in said.paths() for stamp in _stamps(path)]
    return hashlib.sha256(repr((_readers(), said, made_of, named)).encode(errors="surrogateescape")).hexdigest()[:32]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _readers() -> str:
    """What the readers of recordings are: another version of them may read another thing."""
    files = sorted(Path(recordings.__file__).parent.glob("*.py"))
    content = b"".join(file.read_bytes() for file in (*files, Path(recording_formats.__file__)))
    return hashlib.sha256(content).hexdigest()
