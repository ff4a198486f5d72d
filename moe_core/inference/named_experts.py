"""Where the names of a subject's experts are kept: with a run in its folder; beside a file of routing where that folder
can be written, else in the user's cache under what the file holds; of a model of another library in the cache too.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from functools import lru_cache
from itertools import product
from pathlib import Path

from moe_core.errors import MoescopeError
from moe_core.files import private_folder
from moe_core.inference.kept_files import is_kept_file
from moe_core.inference.subjects import ForeignModel, RoutingFile, Subject
from moe_core.routing.trace.trace import StoredTrace
from moe_core.runs import RunFolder
from moe_core.runs.expert_names import FILE, NO_NAMES, ExpertNames, NamedExpert, read_names, write_name

BESIDE = ".expert_names.json"
"""What follows the name of a file of routing."""
_PIECE_BYTES = 1 << 20
NULL_NAME = "null"
"""What an expert that computes nothing is called."""


def names_path(subject: Subject) -> Path:
    """The file of the names, which need not be there."""
    if isinstance(subject, RunFolder):
        return subject.path / FILE
    if isinstance(subject, ForeignModel):
        return _in_cache(subject.where.encode(errors="surrogateescape"))
    place = subject.opened
    beside = place.with_name(place.name + BESIDE)
    if is_kept_file(place) or not os.access(place.parent, os.W_OK | os.X_OK):
        cached = _in_cache(_fingerprint(subject))
        return beside if beside.exists() and not cached.exists() else cached
    return beside


def names_of(subject: Subject) -> tuple[ExpertNames, str]:
    """The names of its experts, and what is wrong with their file: see read_names. Read again once it has changed.

    Null experts that nobody has named are called so.
    """
    path = names_path(subject)
    try:
        entry = path.stat()
        given, wrong = _read(path, (entry.st_mtime_ns, entry.st_size, entry.st_ino))
    except OSError:
        given, wrong = NO_NAMES, ""
    null = _null_experts(subject)
    if not null:
        return given, wrong
    unnamed = (NamedExpert(*place, NULL_NAME) for place in null if place not in given.by_expert)
    return ExpertNames((*given.experts, *unnamed)), wrong


def _null_experts(subject: Subject) -> tuple[tuple[int, int], ...]:
    """(layer, expert) of those that compute nothing; none where that cannot be read."""
    with suppress(MoescopeError, OSError):
        if isinstance(subject, RunFolder):
            place = subject.place.find("config.json")
            return _null_of_run(subject, place.stat().st_mtime_ns)
        if isinstance(subject, RoutingFile) and subject.holds == "tokens":
            return _null_of_trace(subject.path, subject.path.stat().st_mtime_ns)
    return ()


@lru_cache(maxsize=32)
def _null_of_run(run: RunFolder, changed: int) -> tuple[tuple[int, int], ...]:  # noqa: ARG001 - of the key alone
    model = run.config().model
    return tuple(product(model.moe_layers, range(model.num_experts, model.router_choices)))


@lru_cache(maxsize=32)
def _null_of_trace(path: Path, changed: int) -> tuple[tuple[int, int], ...]:  # noqa: ARG001 - of the key alone
    trace = StoredTrace.open(path)
    return tuple(product(trace.layers, range(trace.num_experts - trace.null_experts, trace.num_experts)))


@lru_cache(maxsize=32)
def _read(path: Path, changed: tuple[int, int, int]) -> tuple[ExpertNames, str]:  # noqa: ARG001 - of the key alone
    return read_names(path)


def name_expert(subject: Subject, layer: int, expert: int, name: str) -> ExpertNames:
    """Give an expert a name, "" takes it away; returns all names. Raises UsageError for a bad name, RunError when the
    disk refuses or the run is gone."""
    path = names_path(subject)
    if not isinstance(subject, RunFolder):
        return write_name(path, layer, expert, name)
    with subject.in_place():
        subject.make_folder_of(path)
        return write_name(path, layer, expert, name)


def _in_cache(content: bytes) -> Path:
    return private_folder("expert_names") / f"{hashlib.sha256(content).hexdigest()[:32]}.json"


def _fingerprint(file: RoutingFile) -> bytes:
    """Its size, beginning and end, as a Parquet file's end tells of all of it; of one that is gone, its name."""
    with suppress(OSError), file.path.open("rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(0, size - _PIECE_BYTES))
        end = opened.read(_PIECE_BYTES)
        opened.seek(0)
        return str(size).encode() + opened.read(_PIECE_BYTES) + end
    return str(file.path).encode(errors="surrogateescape")
