"""One text's routing as arrays [tokens, layers, k], and numpy files of it."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moe_core.errors import TraceError
from moe_core.progress import Progress
from moe_core.recording_formats import title_of
from moe_core.routing.recordings.pieces import (
    NPY_FAULTS,
    PIECE_TOKENS,
    Floats,
    Integers,
    Options,
    Piece,
    Recording,
    TokenTexts,
    describe,
    read_token_ids,
    reason,
)


@dataclass(frozen=True)
class Text:
    """The routing of T consecutive tokens of one text, shapes checked."""

    name: str
    """What stands before "row 17" in a message: "record 3"; empty where the file is this text alone."""
    experts: Integers
    token_ids: Integers | None
    weights: Floats | None = None
    start: int = 0
    """Place of the first row within the text."""
    prompt: int = 0
    """Which prompt of its request it continues: texts of one prompt are one source."""
    texts: TokenTexts | None = None
    """What each of the tokens reads."""

    @classmethod
    def checked(
        cls, where: str, name: str, experts: Integers, token_ids: Integers | None, weights: Any = None, start: int = 0
    ) -> Text:
        """Check the shapes. The last token id may lack its row: it was written, but never read by the model."""
        if experts.ndim != 3 or not np.issubdtype(experts.dtype, np.integer) or 0 in experts.shape[1:]:
            raise TraceError(f"{where}: routed_experts is {describe(experts)}; expected integers [tokens, layers, k]")
        rows = len(experts)
        if token_ids is not None and len(token_ids) not in (rows, rows + 1):
            raise TraceError(
                f"{where}: {rows:,} rows of routed_experts for {len(token_ids):,} token ids; expected as many, "
                "or one less, for the last token is not read any more"
            )
        if weights is not None:
            weights = np.asarray(weights)
            if weights.shape != experts.shape or not np.issubdtype(weights.dtype, np.number):
                raise TraceError(
                    f"{where}: routed_weights is {describe(weights)}; expected numbers {list(experts.shape)}"
                )
            weights = weights.astype(np.float32)
        experts = _without_cached_prefix(experts)
        return cls(name, experts, None if token_ids is None else token_ids[:rows], weights, start)

    def reading(self, texts: Sequence[str | None] | None) -> Text:
        """The same text with what each token of the whole reads, from before its first row on; None = not recorded."""
        if texts is None:
            return self
        return replace(self, texts=TokenTexts.of(texts[self.start : self.start + len(self.experts)]))

    def without(self, rows: int) -> Text:
        """The same text from row `rows` on."""
        return replace(
            self,
            experts=self.experts[rows:],
            token_ids=None if self.token_ids is None else self.token_ids[rows:],
            weights=None if self.weights is None else self.weights[rows:],
            texts=None if self.texts is None else self.texts[rows:],
            start=self.start + rows,
        )

    def until(self, rows: int) -> Text:
        """The same text without what comes after its first `rows` rows."""
        return replace(
            self,
            experts=self.experts[:rows],
            token_ids=None if self.token_ids is None else self.token_ids[:rows],
            weights=None if self.weights is None else self.weights[:rows],
            texts=None if self.texts is None else self.texts[:rows],
        )

    def pieces(self, document: int, source: int, domain: int, progress: Progress | None = None) -> Iterator[Piece]:
        """The text cut into pieces, as text number `document` of its recording."""
        T = len(self.experts)
        for begin in range(0, T, PIECE_TOKENS):
            if progress is not None:
                progress("reading", begin, T)
            yield self._piece(begin, min(begin + PIECE_TOKENS, T), document, source, domain)

    def _piece(self, begin: int, end: int, document: int, source: int, domain: int) -> Piece:
        prefix = f"{self.name}, " if self.name else ""
        return Piece(
            experts=np.asarray(self.experts[begin:end]),
            weights=None if self.weights is None else self.weights[begin:end],
            token_ids=None if self.token_ids is None else self.token_ids[begin:end],
            texts=None if self.texts is None else self.texts[begin:end],
            documents=np.full(end - begin, document),
            sources=np.full(end - begin, source),
            domains=np.full(end - begin, domain),
            positions=np.arange(self.start + begin, self.start + end),
            row=lambda t: f"{prefix}row {begin + t}",
            column=lambda layer, slot: f"layer {layer}, slot {slot}",
        )


CACHE_BLOCK = 16
"""Tokens of a block of vLLM's prefix cache. Only whole blocks are cached."""


def _without_cached_prefix(experts: Integers) -> Integers:
    """Of top-1 routing: -1 in the whole blocks of zeros with which a text begins, as an engine's empty buffer does.

    With two slots or more an empty place shows by itself, for no router chooses expert 0 twice (see recorded_tokens).
    With one slot it looks like expert 0 in every layer; 16 tokens of that in a row, from the first on, are no routing
    in a model of several layers. A cache of shorter blocks stays undetected.
    """
    if experts.shape[2] > 1 or experts.shape[1] < 2 or len(experts) < CACHE_BLOCK:
        return experts
    used_T = (np.asarray(experts) != 0).any(axis=(1, 2))
    zeros = int(used_T.argmax()) if used_T.any() else 0
    cached = zeros // CACHE_BLOCK * CACHE_BLOCK
    if not cached:
        return experts
    known = np.asarray(experts).astype(np.int32)
    known[:cached] = -1
    return known


def open_npy(path: Path, options: Options, format: str) -> Recording:
    """A .npy file of one text, read through a memory map. Its token ids come from options.token_ids."""
    try:
        experts = np.load(path, mmap_mode="r", allow_pickle=False)
    except NPY_FAULTS as error:
        raise TraceError(f"{str(path)!r} is no readable .npy file ({reason(error)}); save the array again") from None
    ids = read_token_ids(options.token_ids) if options.token_ids else [None]
    if len(ids) != 1:
        raise TraceError(f"token ids {str(options.token_ids)!r} hold {len(ids)} texts; expected the one of the array")
    text = Text.checked(repr(str(path)), "", experts, ids[0])

    def pieces(progress: Progress) -> Iterator[Piece]:
        yield from text.pieces(0, 0, 0, progress)

    recording = Recording(path, format, title_of(format), domains=["all"])
    recording.pieces = pieces
    return recording


def npz_record(path: Path) -> dict[str, Any]:
    """All arrays of a .npz file by name, as if they were the fields of a JSON record."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            record = {name: content[name] for name in content.files}
    except (*NPY_FAULTS, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise TraceError(f"{str(path)!r} is no readable .npz file ({reason(error)}); save the arrays again") from None
    if "routed_experts" not in record and "prompt_routed_experts" not in record:
        raise TraceError(
            f"{str(path)!r} holds {', '.join(sorted(record)) or 'nothing'}; expected an array named routed_experts"
        )
    return record
