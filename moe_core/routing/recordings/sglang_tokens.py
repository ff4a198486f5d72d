"""SGLang's expert_distribution_recorder_{time}_{rank}.pt of the mode per_token: every token of every forward pass.

`records` are passes: `input_ids`, `positions`, `extend_seq_lens`, `forward_mode` and `topk_ids_of_layer`, int32
[layers, tokens, 8], -1 in layers without a router and in slots beyond the model's k. The ids are those of physical
experts, replicas included; `last_physical_to_logical_map` [layers, physical] says which expert each is a replica of.
Passes name no request: sglang_requests.py tells which tokens are of one text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_core.errors import TraceError
from moe_core.progress import Progress, silent
from moe_core.recording_formats import title_of
from moe_core.routing.recordings.pieces import PIECE_TOKENS, Integers, Options, Piece, Recording, describe
from moe_core.routing.recordings.rank_files import rank_files
from moe_core.routing.recordings.sglang_requests import ForwardMode, RunningRequests
from moe_core.routing.recordings.torch_file import ReadEntry, Tensor, first_words, opened_entries, opened_torch_file
from moe_core.words import count_of

PATTERN = "expert_distribution_recorder_*.pt"
NAME = "sglang-tokens"
CHUNK_BYTES = 2**28
"""Of the experts that are gathered at a time: passes are read once for each such part that has tokens of theirs."""


def is_recording(path: Path) -> bool:
    """Whether the first keys are those of passes with tokens; passes of the mode per_pass have none."""
    words = first_words(path)
    return b"records" in words and (b"input_ids" in words or b"forward_pass_id" not in words)


def open_recording(path: Path, options: Options) -> Recording:
    """The file of one rank, or a folder or glob with those of several; all are looked at with the first piece."""
    if options.token_ids is not None:
        raise TraceError(f"{str(path)!r} has the token ids itself; leave --token-ids out")
    files = rank_files(path, PATTERN)
    recording = Recording(path, NAME, title_of(NAME), domains=["all"])
    known: list[_Rank] = []

    def pieces(progress: Progress) -> Iterator[Piece]:
        if not known:
            known.extend(_ranks(files, recording, progress))
        done, total = 0, sum(rank.tokens for rank in known)
        for rank in known:
            for piece in rank.pieces():
                progress("reading", done, total)
                yield piece
                done += piece.num_tokens

    recording.pieces = pieces
    return recording


@dataclass(frozen=True)
class _Pass:
    """One forward pass as its record has it. Axis N, its tokens."""

    name: str
    """ "record 3"."""
    token_ids: Integers
    positions: npt.NDArray[np.int64]
    lengths: Sequence[int]
    """Tokens of each prompt; empty where the pass decodes."""
    mode: int
    experts: Tensor
    """[L,N,8]"""


@dataclass
class _Rank:
    """What one rank recorded, perhaps several of the same tokens: stages of a pipeline have other layers."""

    files: list[Path]
    passes: list[list[_Pass]]
    """Of each file."""
    prefix: str
    """What stands before "record 3" in a message."""
    replica_of: Integers | None
    """[L,P] the expert that each physical one is a replica of; None where all are themselves."""
    top_k: int
    texts: Integers
    """[T] number of the text of each token of all passes; -1 = left out."""

    @property
    def tokens(self) -> int:
        return int((self.texts >= 0).sum())

    def pieces(self) -> Iterator[Piece]:
        """The tokens text by text."""
        order = np.argsort(self.texts, kind="stable")
        order = order[np.searchsorted(self.texts[order], 0) :]
        sizes = [len(one.token_ids) for one in self.passes[0]]
        starts = np.cumsum([0, *sizes])
        layers = self.passes[0][0].experts.shape[0]
        rows = max(PIECE_TOKENS, CHUNK_BYTES // (4 * layers * self.top_k))
        ids_T = np.concatenate([one.token_ids for one in self.passes[0]])
        positions_T = np.concatenate([one.positions for one in self.passes[0]])
        for begin in range(0, len(order), rows):
            chunk = order[begin : begin + rows]
            pass_of_row = np.searchsorted(starts, chunk, side="right") - 1
            experts_TLK = self._gathered(chunk, pass_of_row, starts, layers)
            for first in range(0, len(chunk), PIECE_TOKENS):
                part = slice(first, first + PIECE_TOKENS)
                here = chunk[part]
                yield Piece(
                    experts=experts_TLK[part],
                    token_ids=ids_T[here],
                    documents=self.texts[here],
                    positions=positions_T[here],
                    row=lambda t, here=here, of=pass_of_row[part]: self._name_of(int(here[t] - starts[of[t]]), of[t]),  # type: ignore[misc]
                    column=lambda layer, slot: f"layer {layer}, slot {slot}",
                )

    def _name_of(self, token: int, number: int) -> str:
        return f"{self.prefix}{self.passes[0][number].name}, token {token}"

    def _gathered(self, chunk: Integers, pass_of_row: Integers, starts: Integers, layers: int) -> Integers:
        """[t,L,K] the experts of these tokens."""
        experts_TLK = np.full((len(chunk), layers, self.top_k), -1, dtype=np.int32)
        with ExitStack() as opened:
            readers = [opened.enter_context(opened_entries(file)) for file in self.files]
            order = np.argsort(pass_of_row, kind="stable")
            numbers, firsts = np.unique(pass_of_row[order], return_index=True)
            for number, rows in zip(numbers.tolist(), np.split(order, firsts[1:]), strict=True):
                wanted = chunk[rows] - starts[number]
                experts_TLK[rows] = self._experts_of_pass(number, readers)[:, wanted].transpose(1, 0, 2)
        return experts_TLK

    def _experts_of_pass(self, number: int, readers: list[ReadEntry]) -> Integers:
        """[L,N,K] the experts of a pass, by their own numbers."""
        found: Integers | None = None
        for file, passes, read in zip(self.files, self.passes, readers, strict=True):
            one = passes[number]
            slots = one.experts.array(read)
            beyond = slots[:, :, self.top_k :] >= 0
            if beyond.any():
                layer, token, slot = np.argwhere(beyond)[0].tolist()
                raise TraceError(
                    f"{str(file)!r}, {one.name}, token {token}, layer {layer}: an expert in slot {slot + self.top_k}; "
                    f"expected {self.top_k} slots, as in the first pass"
                )
            slots = slots[:, :, : self.top_k]
            found = slots if found is None else np.where(found < 0, slots, found)
        assert found is not None
        return found if self.replica_of is None else self._own_numbers(found, self.replica_of, number)

    def _own_numbers(self, physical: Integers, replica_of: Integers, number: int) -> Integers:
        wrong = (physical >= replica_of.shape[1]) | (physical < -1)
        if wrong.any():
            layer, token, slot = np.argwhere(wrong)[0].tolist()
            raise TraceError(
                f"{str(self.files[0])!r}, {self.passes[0][number].name}, token {token}, layer {layer}, slot {slot}: "
                f"{physical[layer, token, slot]}; expected a physical expert from 0 to {replica_of.shape[1] - 1} "
                "(shared experts that are fused with the others are recorded wrongly)"
            )
        own = np.take_along_axis(replica_of[:, :, None], np.maximum(physical, 0).reshape(len(physical), -1, 1), axis=1)
        return np.where(physical < 0, -1, own.reshape(physical.shape))


def _ranks(files: list[Path], recording: Recording, progress: Progress) -> list[_Rank]:
    """All ranks, each token once; says on the recording what must be known of them."""
    known: dict[str, _Rank] = {}
    layers: dict[str, set[int]] = {}
    for number, file in enumerate(files):
        progress("reading", number, len(files))
        with opened_torch_file(file, progress if len(files) == 1 else silent) as content:
            passes, replica_of = _passes_of(file, content)
            found = next((use for use in map(_used_places, passes) if use is not None), None)
        if found is None:
            continue
        routed, top_k = found
        fingerprint = _fingerprint(passes)
        first = known.get(fingerprint)
        if first is None:
            prefix = f"{file.name}, " if len(files) > 1 else ""
            replicas = _replicas(replica_of, recording)
            known[fingerprint] = _Rank([file], [passes], prefix, replicas, top_k, np.zeros(0, dtype=np.int64))
            layers[fingerprint] = routed
        else:
            recording.note("tokens that several ranks recorded are counted once")
            shapes = [one[0].experts.shape for one in (passes, first.passes[0])]
            if shapes[0] != shapes[1]:
                raise TraceError(
                    f"{str(file)!r}, record 0: topk_ids_of_layer is {list(shapes[0])}, that of another rank with the "
                    f"same tokens {list(shapes[1])}; expected one model"
                )
            if routed - layers[fingerprint]:
                first.files.append(file)
                first.passes.append(passes)
                layers[fingerprint] |= routed
    if not known:
        raise TraceError(
            f"{str(recording.path)!r} has no pass with routed tokens; expected records of the mode per_token"
        )
    _tell_texts_apart(list(known.values()), recording)
    return list(known.values())


def _tell_texts_apart(ranks: list[_Rank], recording: Recording) -> None:
    """Number the texts of all ranks."""
    first = uncertain = 0
    for rank in ranks:
        running = RunningRequests(first)
        rank.texts = np.concatenate([_texts_of_pass(one, running, recording) for one in rank.passes[0]])
        first, uncertain = running.count, uncertain + running.uncertain
    if uncertain:
        recording.note(
            f"a text begins anew at {count_of(uncertain, 'token')}, for more than one running request may go on there"
        )


def _texts_of_pass(one: _Pass, running: RunningRequests, recording: Recording) -> Integers:
    """[N] number of each token's text; -1 = left out."""
    texts = np.full(len(one.token_ids), -1, dtype=np.int64)
    known = sum(one.lengths)
    if one.mode == ForwardMode.DECODE:
        texts = running.decode(one.positions)
    elif one.mode == ForwardMode.MIXED:
        texts[:known] = running.mixed(one.positions[:known], one.lengths)
    elif one.mode == ForwardMode.EXTEND:
        texts[:known] = running.extend(one.positions[:known], one.lengths)
    elif one.mode != ForwardMode.IDLE:
        recording.note("passes that try out drafts of tokens are left out: no record says which drafts were taken")
    return texts


def _passes_of(file: Path, content: object) -> tuple[list[_Pass], Integers | None]:
    """The passes of a file and its map of replicas. The lists in the content, which are large, are let go of."""
    records = content.pop("records", None) if isinstance(content, dict) else None
    if not isinstance(records, list):
        raise TraceError(f"{str(file)!r} has no list of records; expected a dump of the mode per_token")
    passes: list[_Pass] = []
    for number in range(len(records)):
        record, records[number] = records[number], None
        name = f"record {number}"
        passes.append(_pass_of(record, name, f"{str(file)!r}, {name}"))
        shape = passes[-1].experts.shape
        if (shape[0], shape[2]) != (passes[0].experts.shape[0], passes[0].experts.shape[2]):
            raise TraceError(
                f"{str(file)!r}, {name}: topk_ids_of_layer is {list(shape)}; expected layers and slots as in record 0, "
                f"{list(passes[0].experts.shape)}"
            )
    assert isinstance(content, dict)
    replica_of = content.get("last_physical_to_logical_map")
    if not passes or replica_of is None:
        return passes, None
    numbers = replica_of.array() if isinstance(replica_of, Tensor) else np.array(None)
    L = passes[0].experts.shape[0]
    if numbers.ndim != 2 or len(numbers) != L or not numbers.size or numbers.dtype.kind != "i" or numbers.min() < 0:
        raise TraceError(
            f"{str(file)!r}: last_physical_to_logical_map is {describe(numbers)}; expected an expert for each of {L} "
            "layers and each physical expert"
        )
    return passes, numbers.astype(np.int64)


def _pass_of(record: Any, name: str, where: str) -> _Pass:
    if not isinstance(record, dict):
        raise TraceError(f"{where} is {type(record).__name__}; expected a pass with its fields")
    ids, positions = (_numbers(record.get(key), f"{where}: {key}") for key in ("input_ids", "positions"))
    experts, mode = record.get("topk_ids_of_layer"), record.get("forward_mode")
    if not isinstance(experts, Tensor) or len(experts.shape) != 3 or 0 in (experts.shape[0], experts.shape[2]):
        raise TraceError(f"{where}: topk_ids_of_layer is no tensor [layers, tokens, slots]; expected one")
    if experts.storage.kind not in ("Int", "Long", "Short"):
        raise TraceError(f"{where}: topk_ids_of_layer is of type {experts.storage.kind}; expected whole numbers")
    if len(ids) != len(positions) or len(ids) != experts.shape[1]:
        raise TraceError(
            f"{where}: {len(ids):,} input_ids, {len(positions):,} positions and topk_ids_of_layer of "
            f"{experts.shape[1]:,} tokens; expected as many"
        )
    if positions.size and positions.min() < 0:
        raise TraceError(f"{where}: positions hold {positions.min()}; expected places in a text, from 0")
    if type(mode) is not int:
        raise TraceError(f"{where}: forward_mode is {type(mode).__name__}; expected its number")
    lengths: list[int] = []
    if mode in (ForwardMode.EXTEND, ForwardMode.MIXED):
        lengths = _numbers(record.get("extend_seq_lens"), f"{where}: extend_seq_lens").tolist()
        if min(lengths, default=0) < 0 or sum(lengths) > len(ids):
            raise TraceError(f"{where}: extend_seq_lens add up to {sum(lengths):,} of {len(ids):,} tokens")
    return _Pass(name, ids, positions, lengths, mode, experts)


def _numbers(values: object, where: str) -> npt.NDArray[np.int64]:
    """[N] from a list or a tensor."""
    try:
        found = values.array() if isinstance(values, Tensor) else np.array(values if isinstance(values, list) else None)
    except (ValueError, OverflowError):
        found = np.array(None)
    if found.ndim != 1 or (found.size and found.dtype.kind != "i"):
        raise TraceError(f"{where} is {describe(found)}; expected a list of whole numbers")
    return found.astype(np.int64)


def _used_places(one: _Pass) -> tuple[set[int], int] | None:
    """Layers that have experts in a pass, and how many slots; None where it has none at all."""
    used_LNK = one.experts.array() >= 0
    slots = np.flatnonzero(used_LNK.any(axis=(0, 1)))
    if not slots.size:
        return None
    return set(np.flatnonzero(used_LNK.any(axis=(1, 2))).tolist()), int(slots[-1]) + 1


def _replicas(replica_of: Integers | None, recording: Recording) -> Integers | None:
    """The map where any expert has a number other than its own. It tells the number of experts besides."""
    if replica_of is None:
        return None
    E = int(replica_of.max()) + 1
    if recording.num_experts not in (None, E):
        raise TraceError(
            f"{str(recording.path)!r}: one rank has {E} experts, another {recording.num_experts}; expected one model"
        )
    recording.num_experts = E
    if (replica_of == np.arange(replica_of.shape[1])).all():
        return None
    recording.note(
        "replicas were told by where they lay when the recording ended: wrong for tokens before experts were moved"
    )
    return replica_of


def _fingerprint(passes: list[_Pass]) -> str:
    """Of all tokens with their places."""
    found = hashlib.sha256()
    for one in passes:
        found.update(np.stack([one.token_ids, one.positions]).tobytes())
        found.update(bytes([0]))
    return found.hexdigest()
