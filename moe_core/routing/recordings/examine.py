"""A first reading of a recording: every value is checked, and what its trace needs to know beforehand is found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moe_core.errors import TraceError
from moe_core.progress import Progress
from moe_core.routing.recordings.pieces import Integers, Options, Piece, Recording
from moe_core.routing.trace.checks import MAX_EXPERTS
from moe_core.routing.trace.types import BoolArray
from moe_core.words import count_of

MAX_ID = int(np.iinfo(np.int32).max)
MAX_TEXTS = 2**20
"""Different texts of tokens: several times those of the largest vocabularies."""


@dataclass(frozen=True)
class Facts:
    """What a whole recording is found to hold."""

    tokens: int
    """Tokens that were routed at all; those without any expert are left out of a trace."""
    documents: int
    kept: BoolArray
    """[L of the recording] which of its layers are routed and wanted."""
    layers: list[int]
    """Numbers of the kept layers, ascending."""
    top_k: int
    num_experts: int
    has_weights: bool
    has_token_ids: bool
    token_ids: list[int]
    """The ids that occur, ascending."""
    texts: Mapping[int, str]
    """Recorded text of ids; of the numbers of texts where no ids were recorded."""
    numbers: Mapping[str, int]
    """What stands for each text where no ids were recorded."""


def examine(recording: Recording, options: Options, progress: Progress) -> Facts:
    """Read all of it once. Raises TraceError naming row and column; notes on the recording what was found."""
    found = _Findings(recording, options.num_experts)
    for piece in recording.pieces(progress):
        found.add(piece)
    return found.facts(options)


def recorded_tokens(experts_TLK: Integers) -> BoolArray:
    """[T] False where nothing was recorded: every slot of every layer is -1, or 0, as an engine's buffer begins.

    A router never chooses one expert twice, so with two slots or more zeros everywhere are an empty place.
    """
    first_TL = experts_TLK[:, :, 0]
    empty_TL = first_TL == -1
    if experts_TLK.shape[2] > 1:
        empty_TL |= first_TL == 0
    empty_TL &= np.all(experts_TLK == experts_TLK[:, :, :1], axis=2)
    recorded_T: BoolArray = ~np.all(empty_TL, axis=1)
    return recorded_T


class _Findings:
    """Counts that grow piece by piece."""

    def __init__(self, recording: Recording, num_experts: int | None) -> None:
        self.recording = recording
        self.told_experts = num_experts
        self.shape: tuple[int, int] | None = None
        self.tokens = 0
        self.unrecorded = 0
        self.largest = -1
        self.documents: set[int] = set()
        self.ids: set[int] = set()
        self.texts: dict[int, str] = {}
        self.numbers: dict[str, int] = {}
        self.ambiguous: dict[int, str] = {}
        self.has: dict[str, bool] = {}
        self.routed_L: BoolArray = np.zeros(0, dtype=np.bool_)
        self.repeated_L: list[str | None] = []

    @property
    def num_experts(self) -> int | None:
        """E, where the user or the recording says it; a reader may learn it with the first piece."""
        return self.told_experts or self.recording.num_experts

    def add(self, piece: Piece) -> None:
        L, K = piece.experts.shape[1:]
        if self.shape is None:
            self.shape = (L, K)
            self.routed_L = np.zeros(L, dtype=np.bool_)
            self.repeated_L = [None] * L
        if self.shape != (L, K):
            raise self._error(
                f"{piece.row(0)} has {L} layers with {K} slots, earlier rows {self.shape[0]} with {self.shape[1]}; "
                "expected the same in every row"
            )
        recorded_T = recorded_tokens(piece.experts)
        self._check_experts(piece, recorded_T)
        self._check_weights(piece)
        self._check_ids(piece)
        self._learn_texts(piece)
        self.tokens += int(recorded_T.sum())
        self.unrecorded += int((~recorded_T).sum())
        self.documents.update(np.unique(piece.documents[recorded_T]).tolist())

    def facts(self, options: Options) -> Facts:
        if not self.tokens or self.shape is None:
            raise self._error("no token is routed; expected at least one expert id")
        kept_L, layers = self._kept_layers(options)
        for layer, where in enumerate(self.repeated_L):
            if kept_L[layer] and where is not None:
                raise self._error(f"{where}; expected each expert once for a token")
        E = self.num_experts
        if E is None:
            E = max(self.largest + 1, 2, self.shape[1])
            self.recording.note(
                f"the number of experts, {E}, is the largest id + 1: give --num-experts if the model has more"
            )
        if not 2 <= E <= MAX_EXPERTS or self.shape[1] > E:
            raise self._error(f"{E} experts with {self.shape[1]} slots; expected 2 to {MAX_EXPERTS} and no more slots")
        self._note_what_is_missing()
        return Facts(
            tokens=self.tokens,
            documents=len(self.documents),
            kept=kept_L,
            layers=layers,
            top_k=self.shape[1],
            num_experts=E,
            has_weights=self.has["weights"],
            has_token_ids=self.has["token ids"],
            token_ids=sorted(self.ids),
            texts=self.texts if self.has["token ids"] else {number: text for text, number in self.numbers.items()},
            numbers=self.numbers,
        )

    def _check_experts(self, piece: Piece, recorded_T: BoolArray) -> None:
        experts_TLK = piece.experts
        limit = (self.num_experts or MAX_EXPERTS) - 1
        wrong = (experts_TLK < -1) | (experts_TLK > limit)
        if wrong.any():
            t, layer, slot = np.argwhere(wrong)[0].tolist()
            raise self._error(
                f"{piece.row(t)}, {piece.column(layer, slot)}: {experts_TLK[t, layer, slot]}; expected an expert id "
                f"from 0 to {limit}, or -1 for none"
            )
        self.largest = max(self.largest, int(experts_TLK.max()))
        if experts_TLK.shape[2] < 2:
            # With one slot an empty place looks like expert 0. A file that names its layers names those with a router.
            named = self.recording.layers is not None
            self.routed_L |= (experts_TLK[:, :, 0] >= (0 if named else 1)).any(axis=0)
            return
        ordered = np.sort(experts_TLK, axis=2)
        twice_TL = ((ordered[:, :, 1:] == ordered[:, :, :-1]) & (ordered[:, :, 1:] >= 0)).any(axis=2)
        # A layer without a router is a row of equal numbers, 0 as a rule: an empty place in the engine's buffer.
        self.routed_L |= (ordered[:, :, 0] != ordered[:, :, -1]).any(axis=0)
        twice_TL &= recorded_T[:, None]
        for layer in np.flatnonzero(twice_TL.any(axis=0)).tolist():
            if self.repeated_L[layer] is None:
                t = int(np.flatnonzero(twice_TL[:, layer])[0])
                self.repeated_L[layer] = self._repetition_in_words(piece, t, layer)

    @staticmethod
    def _repetition_in_words(piece: Piece, t: int, layer: int) -> str:
        row_K = piece.experts[t, layer].tolist()
        slot = next(s for s, expert in enumerate(row_K) if expert >= 0 and expert in row_K[:s])
        return f"{piece.row(t)}, {piece.column(layer, slot)}: expert {row_K[slot]} a second time"

    def _check_weights(self, piece: Piece) -> None:
        self._check_same_columns("weights", piece.weights is not None, piece)
        if piece.weights is None:
            return
        wrong = ~np.isfinite(piece.weights) | ((piece.experts < 0) & (piece.weights != 0))
        if wrong.any():
            t, layer, slot = np.argwhere(wrong)[0].tolist()
            value, expert = piece.weights[t, layer, slot], piece.experts[t, layer, slot]
            expected = "0, for the slot has no expert" if expert < 0 else "a finite number"
            raise self._error(
                f"{piece.row(t)}, {piece.column(layer, slot)}: its weight is {value}; expected {expected}"
            )

    def _check_ids(self, piece: Piece) -> None:
        self._check_same_columns("token ids", piece.token_ids is not None, piece)
        for name, ids_T in (("token id", piece.token_ids), ("position", piece.positions)):
            if ids_T is None:
                continue
            wrong = (ids_T < 0) | (ids_T > MAX_ID)
            if wrong.any():
                t = int(np.flatnonzero(wrong)[0])
                raise self._error(f"{piece.row(t)}: {name} {ids_T[t]}; expected 0 to {MAX_ID}")
        if piece.token_ids is not None:
            self.ids.update(np.unique(piece.token_ids).tolist())

    def _learn_texts(self, piece: Piece) -> None:
        """What each id reads; without ids every text gets a number. Two ids may well read the same."""
        if piece.token_ids is None:
            self._check_same_columns("token texts", piece.texts is not None, piece)
        if piece.texts is None:
            return
        words, codes_T = piece.texts.words, piece.texts.codes
        if piece.token_ids is None:
            if (codes_T < 0).any():
                t = int(np.flatnonzero(codes_T < 0)[0])
                raise self._error(f"{piece.row(t)} has neither a token id nor a text; expected one of them")
            for code in _in_order_of_appearance(codes_T):
                self.numbers.setdefault(words[code], len(self.numbers))
        else:
            keys_T = piece.token_ids[codes_T >= 0] * len(words) + codes_T[codes_T >= 0]
            for key in _in_order_of_appearance(keys_T):
                token_id, code = divmod(key, len(words))
                if self.texts.setdefault(token_id, words[code]) != words[code]:
                    self.ambiguous.setdefault(token_id, words[code])
        if max(len(self.texts), len(self.numbers)) > MAX_TEXTS:
            raise self._error(f"{piece.row(0)}: more than {MAX_TEXTS:,} different token texts so far; expected tokens")

    def _check_same_columns(self, name: str, has: bool, piece: Piece) -> None:
        if self.has.setdefault(name, has) != has:
            raise self._error(
                f"{piece.row(0)} has {'' if has else 'no '}{name}, earlier rows have {'none' if has else 'some'}; "
                "expected them for all tokens or for none"
            )

    def _kept_layers(self, options: Options) -> tuple[BoolArray, list[int]]:
        assert self.shape is not None
        L = self.shape[0]
        named = self.recording.layers
        numbers = list(named) if named is not None else list(range(L))
        kept_L: BoolArray = self.routed_L.copy()
        wanted = options.layers
        if wanted is not None and len(wanted) == L and named is None:
            numbers = list(wanted)
        elif wanted is not None:
            missing = [layer for layer in wanted if layer not in numbers]
            if missing:
                raise self._error(
                    f"--layers names layer {missing[0]}; the recording has {L} layers: {_span_of_layers(numbers)}"
                )
            kept_L &= np.isin(numbers, wanted)
        dense = [number for number, routed in zip(numbers, self.routed_L.tolist(), strict=True) if not routed]
        if dense:
            self.recording.note(
                f"{_span_of_layers(dense)} left out: {'it holds' if len(dense) == 1 else 'they hold'} the same number "
                "everywhere, as a layer without a router does"
            )
        if not kept_L.any():
            raise self._error("no layer is routed: all slots hold the same number; expected different experts")
        return kept_L, [number for number, keep in zip(numbers, kept_L.tolist(), strict=True) if keep]

    def _note_what_is_missing(self) -> None:
        if self.unrecorded:
            self.recording.note(
                f"{self.unrecorded:,} tokens without recorded routing are left out (a cached prefix, as a rule)"
            )
        if not self.has["weights"]:
            assert self.shape is not None
            self.recording.note(f"no weights were recorded: every score is 1/{self.shape[1]}")
        if not self.has["token ids"]:
            self.recording.note(
                f"no token ids were recorded: they number the {len(self.numbers):,} different texts"
                if self.numbers
                else "no token ids were recorded: all are 0, there is no text"
            )
        if self.ambiguous:
            token_id, other = next(iter(self.ambiguous.items()))
            self.recording.note(
                f"the text of {count_of(len(self.ambiguous), 'token id')} changes, that of id {token_id} from "
                f"{self.texts[token_id][:40]!r} to {other[:40]!r}: the first one is shown"
            )

    def _error(self, message: str) -> TraceError:
        return TraceError(f"{str(self.recording.path)!r}: {message}")


def _in_order_of_appearance(numbers_T: Integers) -> list[int]:
    """The different ones among them."""
    different, first = np.unique(numbers_T, return_index=True)
    ordered: list[int] = different[np.argsort(first)].tolist()
    return ordered


def _span_of_layers(numbers: list[int]) -> str:
    """Layer numbers in words: "layer 3", "layers 0 to 2", "layers 0, 2, 5"."""
    if len(numbers) == 1:
        return f"layer {numbers[0]}"
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"layers {numbers[0]} to {numbers[-1]}"
    return "layers " + ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
