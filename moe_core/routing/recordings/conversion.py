"""From a file of recorded routing to a trace: in memory (`read`) or to a Parquet file in bounded memory (`convert`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np

from moe_core.errors import TraceError, UsageError
from moe_core.progress import Progress, silent
from moe_core.routing.recordings.detection import format_at
from moe_core.routing.recordings.examine import Facts, examine, recorded_tokens
from moe_core.routing.recordings.pieces import Integers, Options, Piece, Recording
from moe_core.routing.trace.joining import concatenate
from moe_core.routing.trace.trace import RoutingTrace
from moe_core.routing.trace.types import BoolArray

Texts = Callable[[Sequence[int]], Mapping[int, str]]
"""Printable text of vocabulary ids, by id."""


@dataclass(frozen=True)
class Imported:
    """What came out of a recording."""

    format: str
    tokens: int
    documents: int
    domains: list[str]
    layers: list[int]
    num_experts: int
    top_k: int
    weights: bool
    """Whether combine weights were recorded; otherwise every score is 1/top_k, which the trace's `source` says."""
    token_ids: bool
    """Whether token ids were known; otherwise they number the recorded texts, or are 0: the trace's `source` says so.
    """
    source: str
    notes: list[str]
    """One sentence for everything that a reader of the trace must know."""


def read(
    path: str | Path,
    *,
    format: str = "auto",
    token_ids: str | Path | None = None,
    num_experts: int | None = None,
    top_k: int | None = None,
    layers: Sequence[int] | None = None,
    texts: Texts | None = None,
) -> RoutingTrace:
    """The trace of a recording, checked, in memory; arguments as of `convert`."""
    options = checked_options(token_ids, num_experts, top_k, layers)
    recording = open_recording(Path(path), format, options)
    facts = examine(recording, options, silent)
    return concatenate(list(_traces_of(recording, facts, _vocabulary_of(facts, texts), silent)))


def convert(
    path: str | Path,
    to: str | Path,
    *,
    format: str = "auto",
    token_ids: str | Path | None = None,
    num_experts: int | None = None,
    top_k: int | None = None,
    layers: Sequence[int] | None = None,
    texts: Texts | None = None,
    progress: Progress = silent,
) -> Imported:
    """Write the trace of recorded routing to a Parquet file, replaced as a whole. The recording is read twice.

    `format` is one of FORMAT_NAMES. `token_ids`: a file with the vocabulary ids where the recording has none.
    `num_experts`: E where the recording does not say it; without it the largest id + 1 is taken, and noted.
    `top_k` and `layers`: see Options. `texts` gives printable text for the vocabulary.
    Raises TraceError naming row and column of what is wrong, UsageError for a wrong argument.
    """
    options = checked_options(token_ids, num_experts, top_k, layers)
    return convert_recording(open_recording(Path(path), format, options), to, options, texts=texts, progress=progress)


def convert_recording(
    recording: Recording,
    to: str | Path,
    options: Options,
    *,
    texts: Texts | None = None,
    progress: Progress = silent,
) -> Imported:
    """The same for a recording that is open, whatever opened it."""
    from moe_core.routing.trace.parquet import TraceWriter

    facts = examine(recording, options, _progress_of_stage(progress, "checking (1 of 2)"))
    with TraceWriter(to) as writer:
        for trace in _traces_of(
            recording, facts, _vocabulary_of(facts, texts), _progress_of_stage(progress, "writing (2 of 2)")
        ):
            writer.write(trace)
    return Imported(
        format=recording.format,
        tokens=facts.tokens,
        documents=facts.documents,
        domains=recording.domains,
        layers=facts.layers,
        num_experts=facts.num_experts,
        top_k=facts.top_k,
        weights=facts.has_weights,
        token_ids=facts.has_token_ids,
        source=_source_text(recording),
        notes=recording.notes,
    )


def open_recording(path: Path, format: str, options: Options) -> Recording:
    """Choose the reader by `format`, or for auto by the file's name and first bytes."""
    from moe_core.routing.recordings.one_text import open_npy
    from moe_core.routing.recordings.responses import open_responses

    chosen, kind = format_at(path, format)
    if chosen is not None and chosen.holds == "counts":
        raise TraceError(
            f"{str(path)!r} holds counts of {chosen.title}, not tokens: it becomes no trace; open it as counts"
        )
    if chosen is not None:
        opened: Recording = import_module(chosen.reader).open_recording(path, options)
        return opened
    if kind == "npy":
        return open_npy(path, options, "array" if format == "auto" else format)
    return open_responses(path, options, format)


def _traces_of(
    recording: Recording, facts: Facts, vocabulary: Mapping[int, str], progress: Progress
) -> Iterator[RoutingTrace]:
    """The recording as parts of one trace, in order."""
    domains = list(recording.domains) or ["all"]
    source = _source_text(recording)
    for piece in recording.pieces(progress):
        recorded_T = recorded_tokens(piece.experts)
        if recorded_T.any():
            yield _trace_of_piece(piece, recorded_T, facts, domains, source, vocabulary)


def _trace_of_piece(
    piece: Piece,
    keep_T: BoolArray,
    facts: Facts,
    domains: list[str],
    source: str,
    vocabulary: Mapping[int, str],
) -> RoutingTrace:
    experts_LTK = piece.experts[keep_T][:, facts.kept].transpose(1, 0, 2)
    if piece.weights is None:
        scores_LTK = np.where(experts_LTK >= 0, np.float32(1 / facts.top_k), np.float32(0))
    else:
        scores_LTK = piece.weights[keep_T][:, facts.kept].transpose(1, 0, 2)
    ids_T = _ids_of_piece(piece, facts)
    known = set(np.unique(ids_T[keep_T]).tolist())
    return RoutingTrace.from_arrays(
        router_indices=np.ascontiguousarray(experts_LTK),
        router_scores=np.ascontiguousarray(scores_LTK),
        num_experts=facts.num_experts,
        token_ids=ids_T[keep_T],
        document_ids=piece.documents[keep_T],
        source_ids=None if piece.sources is None else piece.sources[keep_T],
        positions=piece.positions[keep_T],
        domain_ids=np.zeros(int(keep_T.sum()), dtype=np.int16) if piece.domains is None else piece.domains[keep_T],
        domains=domains,
        layers=facts.layers,
        source=source,
        vocabulary={token_id: text for token_id, text in vocabulary.items() if token_id in known},
    )


def _ids_of_piece(piece: Piece, facts: Facts) -> Integers:
    """[T] the recorded ids, else the number of each token's text, else 0."""
    if piece.token_ids is not None:
        return piece.token_ids
    if piece.texts is None:
        return np.zeros(piece.num_tokens, dtype=np.int32)
    numbers = np.array([facts.numbers.get(word, -1) for word in piece.texts.words])
    ids_T: Integers = numbers[piece.texts.codes]
    return ids_T


def _source_text(recording: Recording) -> str:
    """Where the trace came from, with everything that limits what it can tell."""
    notes = f" ({'; '.join(recording.notes)})" if recording.notes else ""
    return f"{recording.name}, {recording.origin or recording.path.name}{notes}"


def _vocabulary_of(facts: Facts, texts: Texts | None) -> Mapping[int, str]:
    """Recorded text goes first: it needs no tokenizer, which may be another one's."""
    by_tokenizer = texts(facts.token_ids) if texts is not None and facts.has_token_ids else {}
    return {**by_tokenizer, **facts.texts}


def checked_options(
    token_ids: str | Path | None, num_experts: int | None, top_k: int | None, layers: Sequence[int] | None
) -> Options:
    """The options of a recording. Raises UsageError naming the one that cannot be."""
    if layers is not None and (not layers or sorted(set(layers)) != list(layers) or layers[0] < 0):
        raise UsageError(f"layers is {list(layers)}; expected ascending layer numbers")
    for name, value, least in (("num_experts", num_experts, 2), ("top_k", top_k, 1)):
        if value is not None and value < least:
            raise UsageError(f"{name} is {value}; expected {least} or more")
    return Options(
        token_ids=None if token_ids is None else Path(token_ids),
        num_experts=num_experts,
        top_k=top_k,
        layers=None if layers is None else tuple(layers),
    )


def _progress_of_stage(progress: Progress, stage: str) -> Progress:
    return lambda _, done, total: progress(stage, done, total)
