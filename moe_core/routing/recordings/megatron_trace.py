"""What Megatron-LM's RouterTracer writes: `router_trace_rank*.jsonl`, a line for each forward pass through a layer.

    {"step": 0, "stage": "pre_dispatch", "block": "decoder", "layer": 3, "rank": 0, "num_tokens": 128, "topk": 8,
     "top_indices": [[12, 45, ...], ...]}

A pass visits the layers in ascending order, so it ends where they fall, or where the step changes. Every rank has a
file of its own, with other tokens; ranks that computed the same tokens wrote the same lines and are read once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from moe_core.errors import TraceError, shortened
from moe_core.progress import Progress, silent
from moe_core.recording_formats import title_of
from moe_core.routing.recordings.json_records import Record, json_records
from moe_core.routing.recordings.pieces import PIECE_TOKENS, Integers, Options, Piece, Recording, describe
from moe_core.routing.recordings.rank_files import rank_files

PATTERN = "router_trace_rank*.jsonl"
INDICES = "top_indices"
SURE_BYTES = 2_000
"""Smaller files of two ranks may be the same by chance."""
SURE_CHOICES = 64
"""Two passes of a step with fewer may be the same by chance."""
_LOOK_AT = 4096
_RANK = re.compile(rb'"rank"\s*:\s*\d+')


def is_recording(path: Path) -> bool:
    """Whether the first line begins as the tracer's: the lists, which are long, come last."""
    with path.open("rb") as file:
        start = file.read(_LOOK_AT)
    return all(f'"{key}"'.encode() in start for key in ("step", "layer", INDICES))


def open_recording(path: Path, options: Options) -> Recording:
    """The file of one rank, or a folder or glob with those of several."""
    if options.token_ids is not None:
        raise TraceError(f"{str(path)!r}: the tracer tells no texts apart that ids could be of; leave --token-ids out")
    reader = _Reader(rank_files(path, PATTERN), Recording(path, "megatron-trace", title_of("megatron-trace")))
    reader.recording.domains.append("all")
    reader.recording.note(
        "no texts are told apart: each forward pass of a rank counts as one; where it has several sequences its tokens "
        "alternate between them, and measures of neighbours say nothing"
    )
    reader.recording.pieces = reader.pieces
    return reader.recording


@dataclass
class _Pass:
    """The lines of one forward pass of a rank."""

    step: int
    where: str
    """The first of them: "line 3"."""
    experts: dict[int, Integers] = field(default_factory=dict)
    """[T,K] by layer, ascending."""


class _Reader:
    """All ranks, one after the other."""

    def __init__(self, files: list[Path], recording: Recording) -> None:
        self.files = files
        self.recording = recording
        first = next((one for file in files for one in self._passes(file, silent)), None)
        if first is None:
            raise TraceError(f"{str(recording.path)!r} has no line of the decoder; expected lines with {INDICES}")
        self.layers = list(first.experts)
        recording.layers = self.layers
        self.sizes = [file.stat().st_size for file in files]
        self.fingerprints: dict[Path, str] = {}

    def pieces(self, progress: Progress) -> Iterator[Piece]:
        document, seen, before = 0, set[str](), 0
        for file, size in zip(self.files, self.sizes, strict=True):

            def of_all(stage: str, done: int, _: int, before: int = before) -> None:
                progress(stage, before + done, sum(self.sizes))

            before += size
            if len(self.files) > 1 and size >= SURE_BYTES:
                if file not in self.fingerprints:
                    self.fingerprints[file] = _fingerprint(file, of_all)
                if self.fingerprints[file] in seen:
                    self.recording.note("ranks that recorded the same tokens are counted once")
                    continue
                seen.add(self.fingerprints[file])
            for one in self._first_time(file, self._passes(file, of_all)):
                yield from self._pieces_of_pass(one, file, document)
                document += 1

    def _first_time(self, file: Path, passes: Iterator[_Pass]) -> Iterator[_Pass]:
        """Without layers that are evaluated once more: activations are recomputed for the backward pass."""
        step, known = -1, set[tuple[int, bytes]]()
        for one in passes:
            if one.step != step:
                step, known = one.step, set()
            contents = {(layer, hashlib.sha256(chosen.tobytes()).digest()) for layer, chosen in one.experts.items()}
            whole = list(one.experts) == self.layers
            choices = sum(chosen.size for chosen in one.experts.values())
            if contents <= known and (choices >= SURE_CHOICES or not whole):
                self.recording.note("layers that were recomputed for the backward pass are counted once")
            elif whole:
                known |= contents
                yield one
            else:
                raise TraceError(
                    f"{str(file)!r}, {one.where}: a pass through the layers {_list_of(list(one.experts))}; expected "
                    f"{_list_of(self.layers)}, as in the first one (files of one stage of a pipeline at a time)"
                )

    def _passes(self, file: Path, progress: Progress) -> Iterator[_Pass]:
        """The passes of a rank's decoder, in order."""
        held: _Pass | None = None
        for name, record in json_records(file, progress):
            where = f"{str(file)!r}, {name}"
            if record.get("mtp_idx") is not None or record.get("block") == "mtp":
                self.recording.note("heads that predict several tokens ahead (block mtp) are left out")
                continue
            step, layer = (_whole_number(record, key, where) for key in ("step", "layer"))
            experts_TK = _choices(record, where)
            if held is None or held.step != step or layer <= max(held.experts):
                if held is not None:
                    yield held
                held = _Pass(step, name)
            tokens = len(next(iter(held.experts.values()), experts_TK))
            if len(experts_TK) != tokens:
                raise TraceError(
                    f"{where}: layer {layer} has {len(experts_TK):,} tokens, another of the same pass {tokens:,}; "
                    "expected as many"
                )
            held.experts[layer] = experts_TK
        if held is not None:
            yield held

    def _pieces_of_pass(self, one: _Pass, file: Path, document: int) -> Iterator[Piece]:
        widths = {experts_TK.shape[1] for experts_TK in one.experts.values() if experts_TK.size}
        if len(widths) > 1:
            raise TraceError(f"{str(file)!r}, {one.where}: {_list_of(sorted(widths))} experts a token; expected one K")
        if not widths:
            return  # a rank without tokens
        experts_TLK = np.stack(list(one.experts.values()), axis=1)
        prefix = f"{file.name}, {one.where}" if len(self.files) > 1 else one.where
        for begin in range(0, len(experts_TLK), PIECE_TOKENS):
            part = experts_TLK[begin : begin + PIECE_TOKENS]
            yield Piece(
                experts=part,
                documents=np.full(len(part), document),
                positions=np.arange(begin, begin + len(part)),
                row=lambda t, begin=begin: f"the pass from {prefix} on, token {begin + t}",  # type: ignore[misc]
                column=lambda layer, slot: f"layer {self.layers[layer]}, slot {slot}",
            )


def _fingerprint(file: Path, progress: Progress) -> str:
    """Of all lines but for the number of the rank."""
    found = hashlib.sha256()
    done = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines):
            if number % 1000 == 0:
                progress("reading", done, 0)
            done += len(line)
            found.update(_RANK.sub(b"", line))
    return found.hexdigest()


def _whole_number(record: Record, key: str, where: str) -> int:
    value = record.get(key)
    if type(value) is not int or not 0 <= value < 2**31:
        shown = shortened(value) if isinstance(value, int | float | str | None) else type(value).__name__
        raise TraceError(f"{where}: {key} is {shown}; expected a whole number from 0")
    return value


def _choices(record: Record, where: str) -> Integers:
    """[T,K] the choices of a line, as many as it says."""
    value = record.get(INDICES)
    try:
        experts_TK = np.array(value)
    except (ValueError, OverflowError):  # lists of different lengths
        experts_TK = np.array(None)
    if experts_TK.size == 0 and isinstance(value, list):
        experts_TK = np.zeros((len(value), 0), dtype=np.int64)
    elif experts_TK.ndim != 2 or experts_TK.dtype.kind != "i":
        raise TraceError(f"{where}: {INDICES} is {describe(experts_TK)}; expected a list of expert ids for each token")
    tokens = _whole_number(record, "num_tokens", where)
    width = experts_TK.shape[1] if record.get("topk") is None else _whole_number(record, "topk", where)
    if tokens != len(experts_TK) or (experts_TK.size and width != experts_TK.shape[1]):
        raise TraceError(f"{where}: {INDICES} is {list(experts_TK.shape)} for {tokens:,} tokens with {width} experts")
    return experts_TK


def _list_of(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
