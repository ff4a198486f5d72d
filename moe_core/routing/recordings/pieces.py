"""What every reader of recorded routing yields: consecutive tokens as the file has them, and where they stand in it."""

from __future__ import annotations

import tokenize
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_core.errors import TraceError, UsageError
from moe_core.progress import Progress

PIECE_TOKENS = 16_384
"""Tokens a reader yields at a time, so that a file larger than memory passes through."""

Integers = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.floating[Any]]
MOST_LAYERS = 10_000
NPY_FAULTS = (OSError, ValueError, EOFError, MemoryError, RecursionError, SyntaxError, tokenize.TokenError)
"""What numpy raises for a damaged .npy file; its header is read as Python."""


@dataclass(frozen=True)
class TokenTexts:
    """The text of each of T tokens, as the recording has it: no tokenizer is needed to show it."""

    words: Sequence[str]
    """The different texts."""
    codes: Integers
    """[T] place of each token's text among them; -1 = it has none."""

    @classmethod
    def of(cls, texts: Sequence[str | None]) -> TokenTexts:
        """From one text a token."""
        numbers: dict[str, int] = {}
        codes = [-1 if text is None else numbers.setdefault(text, len(numbers)) for text in texts]
        return cls(list(numbers), np.array(codes, dtype=np.int64))

    def __getitem__(self, rows: slice) -> TokenTexts:
        return TokenTexts(self.words, self.codes[rows])


@dataclass(frozen=True)
class Piece:
    """T consecutive tokens of a recording. Shapes hold, values are not yet checked."""

    experts: Integers
    """[T,L,K] expert ids; -1 = no expert in this slot."""
    documents: Integers
    """[T] numbers of the texts, counted through the whole recording."""
    positions: Integers
    """[T] place of each token within its text."""
    row: Callable[[int], str]
    """Where token t stands in the file, for messages: "row 17"."""
    column: Callable[[int, int], str]
    """Where layer l and slot s stand in that row, for messages: "column 'layer_3_expert_1'"."""
    weights: Floats | None = None
    """[T,L,K] combine weights, where they were recorded."""
    token_ids: Integers | None = None
    """[T] vocabulary ids, where they are known."""
    texts: TokenTexts | None = None
    """What each token reads, where it was recorded."""
    sources: Integers | None = None
    """[T] what each text was cut from; None = every text is its own."""
    domains: Integers | None = None
    """[T] index into the recording's `domains`; None = one domain."""

    @property
    def num_tokens(self) -> int:
        """T."""
        return int(self.experts.shape[0])


@dataclass
class Recording:
    """A file of recorded routing, opened: what is known of it as a whole, and how to read it, as often as one likes."""

    path: Path
    format: str
    """A name of RECORDING_FORMATS, or array."""
    name: str
    """What made it, for people: "vLLM routed_experts"."""
    pieces: Callable[[Progress], Iterator[Piece]] = field(init=False)
    """Set by the reader: all tokens in order, PIECE_TOKENS or fewer at a time, as often as one asks."""
    layers: Sequence[int] | None = None
    """[L] layer numbers where the file names them; None = it counts its layers from 0."""
    num_experts: int | None = None
    """E where the file says it; set before the first piece comes."""
    domains: list[str] = field(default_factory=list)
    """Names of the domains; grows while pieces are read."""
    origin: str = ""
    """What was recorded, for people, where the file is not what its user knows it by; empty = the file's name."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the trace must know; grows while pieces are read."""

    def domain_number(self, name: str) -> int:
        """Its index in `domains`, to which it is added the first time."""
        if name not in self.domains:
            self.domains.append(name)
        return self.domains.index(name)

    def note(self, text: str) -> None:
        """Add a note once."""
        if text not in self.notes:
            self.notes.append(text)


@dataclass(frozen=True)
class Options:
    """What the user says about a recording that it does not say itself."""

    token_ids: Path | None = None
    """A file with the vocabulary ids of the tokens."""
    num_experts: int | None = None
    top_k: int | None = None
    layers: tuple[int, ...] | None = None
    """Numbers of the layers: as many as the recording has = their names; fewer = those to keep, counted from 0."""


def layers_of_text(text: str) -> tuple[int, ...]:
    """ "3-47" or "1,3,5", or both, as ascending numbers. Raises UsageError."""
    numbers: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            if dash and int(last) - int(first) > MOST_LAYERS:
                raise ValueError
            numbers += range(int(first), int(last) + 1) if dash else [int(first)]
    except ValueError:
        numbers = []
    if not numbers or sorted(set(numbers)) != numbers or len(numbers) > MOST_LAYERS or numbers[0] < 0:
        raise UsageError(f"{text[:40]!r} is no list of layers; expected ascending ones such as 3-47 or 1,3,5")
    return tuple(numbers)


def read_token_ids(path: Path) -> list[Integers]:
    """Vocabulary ids, one array for each text: .npy (one text), .json (a list, or a list of lists), or text.

    Text is numbers between spaces, commas and line breaks (one text), or a CSV table with a column `id` or `token_id`.
    Raises TraceError naming what is wrong.
    """
    where = f"token ids {str(path)!r}"
    try:
        if path.suffix.lower() == ".npy":
            found: list[Any] = [np.load(path, allow_pickle=False)]
        elif path.suffix.lower() == ".json":
            found = _id_lists(path.read_text(encoding="utf-8"))
        else:
            found = [_ids_of_text(path.read_text(encoding="utf-8"))]
    except NPY_FAULTS as error:
        raise TraceError(f"{where}: {reason(error)}; expected whole numbers as .npy, .json, .csv or .txt") from None
    arrays = []
    for number, ids in enumerate(found):
        array = np.asarray(ids)
        if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.integer):
            raise TraceError(f"{where}: text {number} is {describe(array)}; expected a list of whole numbers")
        arrays.append(array)
    if not arrays:
        raise TraceError(f"{where} is empty; expected the vocabulary id of every token")
    return arrays


def _id_lists(text: str) -> list[Any]:
    import json

    content = json.loads(text)
    if isinstance(content, list) and content and all(isinstance(item, list) for item in content):
        return content
    return [content]


def _ids_of_text(text: str) -> list[int]:
    first, _, rest = text.partition("\n")
    names = [name.strip() for name in first.split(",")]
    column = next((names.index(name) for name in ("id", "token_id") if name in names), None)
    if column is None:
        return [int(word) for word in text.replace(",", " ").split()]
    return [int(line.split(",")[column]) for line in rest.splitlines() if line.strip()]


def describe(value: object) -> str:
    """An array's type and shape, anything else's type, for messages."""
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


def reason(error: BaseException) -> str:
    """The cause of an OSError or ValueError in one short line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__
