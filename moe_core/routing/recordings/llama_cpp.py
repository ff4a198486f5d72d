"""CSV traces of llama.cpp's moe-trace programs: three layouts, none of which says where a token begins.

A graph evaluation ("pass") visits the MoE layers in ascending order and writes for each the choices of all its tokens,
so passes, and in them tokens, follow from the order of the rows. Two things must be known (docs/trace-format.md):
the last layer is evaluated only for tokens whose output is wanted, which are the last ones of a pass; and early
versions of the programs read the choices of a pass with several tokens wrongly.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moe_core.errors import TraceError
from moe_core.progress import Progress, silent
from moe_core.recording_formats import title_of
from moe_core.routing.recordings.csv_rows import Layout, TokenRows, layout_of, token_rows
from moe_core.routing.recordings.pieces import PIECE_TOKENS, Integers, Options, Piece, Recording, read_token_ids

FLUSH_ROWS = 1_000_000
"""Rows of one layer in sequence after which it is taken to be the only one."""
LOOK_AT = 8
"""Tokens at the beginning of a pass that are looked at for choices read wrongly."""
SURE = math.log(1e-6)


def open_recording(path: Path, options: Options) -> Recording:
    """A CSV of a moe-trace program. Token ids, where known, come from options.token_ids, for all texts in sequence."""
    layout = layout_of(path, options.top_k)
    layers, misread = _scan_layers(path, layout)
    given = read_token_ids(options.token_ids) if options.token_ids else None
    ids = None if given is None else np.concatenate(given)
    recording = Recording(path, "llama.cpp", title_of("llama.cpp"), layers=layers)
    recording.domains.append("all")
    if misread:
        recording.note(
            "prompt tokens after the first of each batch are left out: the recorder read their experts from the wrong "
            "place, for within a batch no expert comes up twice"
        )

    def pieces(progress: Progress) -> Iterator[Piece]:
        counter = _Counter()
        for rows in _whole_passes(token_rows(path, layout, progress)):
            yield from _assemble_passes(rows, layers, misread, counter, ids, recording)
        if ids is not None and counter.tokens not in (len(ids), len(ids) - 1):
            raise TraceError(
                f"token ids {str(options.token_ids)!r} are {len(ids):,} for {counter.tokens:,} tokens of "
                f"{str(path)!r}; expected as many, or one more, for the last token is not read any more"
            )

    recording.pieces = pieces
    return recording


@dataclass
class _Counter:
    """What was assembled so far."""

    tokens: int = 0
    document: int = 0
    begins_at: int = 0
    """Token with which the current text begins."""
    last_mark: int | None = None


def _scan_layers(path: Path, layout: Layout) -> tuple[list[int], bool]:
    """Layer numbers that occur, and whether choices of several tokens were read from the wrong place."""
    layers: set[int] = set()
    starts: Counter[tuple[int, int]] = Counter()
    largest = 0
    for rows in _whole_passes(token_rows(path, layout, silent)):
        layers.update(np.unique(rows.layers).tolist())
        largest = max(largest, int(rows.experts.max()))
        begins, lengths = _runs_of_layers(rows.layers)
        for begin, length in zip(begins.tolist(), lengths.tolist(), strict=True):
            if length > 1:
                starts[(min(length, LOOK_AT), _count_disjoint_tokens(rows.experts[begin : begin + LOOK_AT]))] += 1
    if not layers:
        raise TraceError(f"{str(path)!r} has no rows; expected the CSV of a moe-trace program")
    return sorted(layers), _is_misread(starts, largest + 1, layout.top_k)


def _count_disjoint_tokens(experts_NK: Integers) -> int:
    """How many tokens from the first on share no expert with one another."""
    seen: set[int] = set()
    for number, row_K in enumerate(experts_NK.tolist()):
        if seen & set(row_K):
            return number
        seen |= set(row_K)
    return len(experts_NK)


def _is_misread(starts: Counter[tuple[int, int]], E: int, K: int) -> bool:
    """Whether in every pass the first tokens share no expert, as when one token's ranking is taken for many choices.

    The choices are the first K of a ranking of all E experts; read without regard to that, the second token shows
    ranks K+1 to 2K of the first one. Tokens that choose independently and evenly share none by a probability of which
    the logarithm is summed here; real neighbours share more, so chance explains it less still.
    """
    log_chance = 0.0
    for (length, disjoint), times in starts.items():
        looked_at = min(length, E // K)
        if disjoint < looked_at:
            return False
        for i in range(1, looked_at):
            log_chance += times * (_log_choose(E - i * K, K) - _log_choose(E, K))
    return log_chance < SURE


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _whole_passes(chunks: Iterator[TokenRows]) -> Iterator[TokenRows]:
    """The same rows, cut only where a pass begins: where the layer number falls."""
    held: TokenRows | None = None
    for chunk in chunks:
        rows = chunk if held is None else held.followed_by(chunk)
        falls = np.flatnonzero(np.diff(rows.layers) < 0)
        cut = int(falls[-1]) + 1 if falls.size else 0
        if not cut and len(rows.layers) >= FLUSH_ROWS and (rows.layers == rows.layers[0]).all():
            cut = len(rows.layers)
        if cut:
            yield rows.part(0, cut)
        held = rows.part(cut, len(rows.layers))
    if held is not None and len(held.layers):
        yield held


def _runs_of_layers(layers_N: Integers) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Where each stretch of rows of one layer begins, and how long it is."""
    begins = np.flatnonzero(np.diff(layers_N, prepend=-1))
    return begins, np.diff(np.append(begins, len(layers_N)))


def _assemble_passes(
    rows: TokenRows,
    layers: list[int],
    misread: bool,
    counter: _Counter,
    ids: Integers | None,
    recording: Recording,
) -> Iterator[Piece]:
    """Whole passes as pieces."""
    begins_R, lengths_R = _runs_of_layers(rows.layers)
    run_layers_R = rows.layers[begins_R]
    pass_R = np.cumsum(np.diff(run_layers_R, prepend=run_layers_R[0]) < 0)
    tokens_P = np.zeros(pass_R[-1] + 1, dtype=np.int64)
    np.maximum.at(tokens_P, pass_R, lengths_R)
    missing_R = tokens_P[pass_R] - lengths_R
    _check_short_runs(rows, begins_R, lengths_R, missing_R, run_layers_R, layers, recording)
    first_P = np.cumsum(tokens_P) - tokens_P
    # Row i of a run is the token so far from the end of its pass as the row is from the end of its run.
    run_N = np.repeat(np.arange(len(begins_R)), lengths_R)
    token_N = (first_P[pass_R] + missing_R - begins_R)[run_N] + np.arange(len(rows.layers))
    T = int(tokens_P.sum())
    experts_TLK = np.full((T, len(layers), rows.experts.shape[1]), -1, dtype=np.int64)
    experts_TLK[token_N, np.searchsorted(layers, rows.layers)] = rows.experts
    if misread:
        inner_T = np.ones(T, dtype=np.bool_)
        inner_T[first_P] = False
        experts_TLK[inner_T] = -1
    first_row_P = begins_R[np.searchsorted(pass_R, np.arange(len(tokens_P)))]
    documents_P, begins_P = _texts_of_passes(rows, first_row_P, first_P, counter)
    lines_T = np.zeros(T, dtype=np.int64)
    lines_T[token_N[::-1]] = rows.lines[::-1]
    places_T = np.arange(counter.tokens, counter.tokens + T)
    documents_T, positions_T = np.repeat(documents_P, tokens_P), places_T - np.repeat(begins_P, tokens_P)
    counter.tokens += T
    if ids is not None and counter.tokens > len(ids):
        raise TraceError(
            f"only {len(ids):,} token ids, but {str(recording.path)!r} has more tokens (line {lines_T[-1]}); "
            "expected one for each"
        )
    for begin in range(0, T, PIECE_TOKENS):
        part = slice(begin, begin + PIECE_TOKENS)
        yield Piece(
            experts=experts_TLK[part],
            documents=documents_T[part],
            positions=positions_T[part],
            token_ids=None if ids is None else ids[places_T[part]],
            row=lambda t, lines=lines_T[part]: f"the token of line {lines[t]}",  # type: ignore[misc]
            column=lambda layer, slot: f"layer {layers[layer]}, slot {slot}",
        )


def _check_short_runs(
    rows: TokenRows,
    begins_R: npt.NDArray[np.intp],
    lengths_R: npt.NDArray[np.intp],
    missing_R: npt.NDArray[np.int64],
    run_layers_R: Integers,
    layers: list[int],
    recording: Recording,
) -> None:
    short_R = missing_R > 0
    wrong_R = short_R & (run_layers_R != layers[-1])
    if wrong_R.any():
        run = int(np.flatnonzero(wrong_R)[0])
        raise TraceError(
            f"{str(recording.path)!r}, line {rows.lines[begins_R[run]]}: layer {run_layers_R[run]} has "
            f"{lengths_R[run]} tokens where another layer of the same pass has {lengths_R[run] + missing_R[run]}; "
            "expected as many (is the file cut, or --top-k wrong?)"
        )
    if short_R.any():
        recording.note(
            f"layer {layers[-1]}, the last one, was evaluated only for tokens whose output was wanted: the other "
            "tokens of the prompt have no expert there"
        )


def _texts_of_passes(
    rows: TokenRows, first_row_P: npt.NDArray[np.intp], first_P: npt.NDArray[np.int64], counter: _Counter
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """[P] the text of each pass, and the token with which that text begins: a text begins where places start anew."""
    documents_P = np.zeros(len(first_P), dtype=np.int64)
    begins_P = np.zeros(len(first_P), dtype=np.int64)
    for number, (row, first) in enumerate(zip(first_row_P.tolist(), first_P.tolist(), strict=True)):
        if rows.marks is not None:
            mark = int(rows.marks[row])
            if counter.last_mark is not None and _starts_anew(mark, counter.last_mark):
                counter.document += 1
                counter.begins_at = counter.tokens + first
            counter.last_mark = mark
        documents_P[number], begins_P[number] = counter.document, counter.begins_at
    return documents_P, begins_P


def _starts_anew(mark: int, before: int) -> bool:
    """Negative places are a prompt's, counted down from batch to batch; others count up within a text."""
    return before >= 0 and mark <= before
