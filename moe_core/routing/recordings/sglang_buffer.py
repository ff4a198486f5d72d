"""SGLang's expert_distribution_recorder_{time}.pt of the modes stat and stat_approx: counts by forward pass.

`logical_count` [passes, layers, experts] is summed over all ranks before it is written, so that files of several ranks
of one dump hold the same. The buffer is a ring: a pass that was not used is 0 everywhere, and a dump does not set it
back to its beginning. Layers without a router are 0 too.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_core.errors import TraceError
from moe_core.progress import Progress, silent
from moe_core.recording_formats import title_of
from moe_core.routing.recordings.counted import Counted, note
from moe_core.routing.recordings.pieces import Options
from moe_core.routing.recordings.rank_files import rank_files
from moe_core.routing.recordings.torch_file import Tensor, first_words, opened_torch_file
from moe_core.routing.trace.groups import MAX_NUMBERS
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.routing.trace.types import BoolArray, Int64Array

PATTERN = "expert_distribution_recorder_*.pt"
COUNTS = "logical_count"
MOST_NUMBERS = 2**28
"""Of one file: 1 GiB of int32, 17,000 passes of 61 layers with 256 experts."""


def is_recording(path: Path) -> bool:
    """Is there a buffer of counts in it?"""
    return COUNTS.encode() in first_words(path)


def open_counts(path: Path, options: Options, progress: Progress) -> RoutingCounts:
    """The counts by forward pass, of several dumps one after the other. Raises TraceError naming the file."""
    files = rank_files(path, PATTERN)
    notes: list[str] = []
    parts: list[Int64Array] = []
    seen: set[bytes] = set()
    for number, file in enumerate(files):
        progress("reading", number, len(files))
        counts_SLE, digest = _passes(file, notes, most=MAX_NUMBERS // len(files))
        if digest not in seen:
            parts.append(counts_SLE)
        seen.add(digest)
        if counts_SLE.shape[1:] != parts[0].shape[1:]:
            raise TraceError(
                f"{str(file)!r} has {list(counts_SLE.shape[1:])} layers and experts, {str(files[0])!r} "
                f"{list(parts[0].shape[1:])}; expected dumps of one model"
            )
    if len(parts) < len(files):
        notes.append(
            f"of {len(files)} files {len(parts)} differ: every rank writes the sums over all ranks, and equal ones "
            "count once"
        )
    if len(parts) > 1:
        notes.append(f"{len(parts)} files that differ are taken for dumps one after the other")
    notes.append(
        "SGLang sums over all ranks: with tensor parallelism each of them counts every token, and the counts are so "
        "many times too high; their shares are right"
    )
    counts = parts[0] if len(parts) == 1 else np.concatenate(parts)
    counted = Counted(path, title_of("sglang-stat"), counts[:, :, None], range(len(counts)), notes=notes)
    return counted.routing_counts(options)


def _passes(path: Path, notes: list[str], most: int) -> tuple[Int64Array, bytes]:
    """[S,L,E] the forward passes of a file in their order, at most so many numbers, and a digest of what they are."""
    with opened_torch_file(path, silent) as content:
        tensor = content.get(COUNTS) if isinstance(content, dict) else None
        if not isinstance(tensor, Tensor) or len(tensor.shape) not in (2, 3) or 0 in tensor.shape:
            shape = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TraceError(f"{str(path)!r}: {COUNTS} is {shape}; expected a tensor [passes, layers, experts]")
        if math.prod(tensor.shape) > MOST_NUMBERS:
            raise TraceError(
                f"{str(path)!r}: {COUNTS} {list(tensor.shape)} has more than {MOST_NUMBERS:,} numbers; record with a "
                "smaller --expert-distribution-recorder-buffer-size"
            )
        buffer = tensor.array()
    if not np.issubdtype(buffer.dtype, np.integer) or buffer.min() < 0:
        raise TraceError(f"{str(path)!r}: {COUNTS} is {buffer.dtype}, from {buffer.min()} on; expected counts")
    buffer_SLE = buffer.reshape(-1, *buffer.shape[-2:])
    order = _order_of_passes(np.asarray(buffer_SLE.any(axis=(1, 2))), notes)
    if not len(order):
        raise TraceError(f"{str(path)!r}: every count is 0; start the recorder, ask the server something, then dump")
    digest = hashlib.sha256(np.ascontiguousarray(buffer_SLE).data).digest()
    return _joined_passes(buffer_SLE, order, notes, most), digest


def _order_of_passes(used_S: BoolArray, notes: list[str]) -> npt.NDArray[np.intp]:
    """The used places of the ring, from its beginning where that is seen."""
    places = np.flatnonzero(used_S)
    if used_S.all() and len(used_S) > 1:
        note(notes, "every place of the buffer is used: older passes may be lost, and which one is first is not known")
    starts = np.flatnonzero(used_S & ~np.roll(used_S, 1))
    if len(starts) == 1:
        return np.roll(places, -int(np.searchsorted(places, starts[0])))
    if len(starts) > 1:
        note(notes, "passes without tokens lie between the others: their order is that of the buffer's places")
    return places


def _joined_passes(
    buffer_SLE: npt.NDArray[Any], order: npt.NDArray[np.intp], notes: list[str], most: int
) -> Int64Array:
    """The passes as int64; so many of them added into one that all are at most `most` numbers."""
    _, L, E = buffer_SLE.shape
    together = max(1, -(-len(order) * L * E // most))
    if together > 1:
        note(notes, f"{together} forward passes each are added into one step, for all would not fit")
    counts = np.zeros((-(-len(order) // together), L, E), dtype=np.int64)
    for number, place in enumerate(order):
        counts[number // together] += buffer_SLE[place]
    return counts
