"""The columns `domain`, `label` and `token_text` of a trace's file: what numbers mean, for programs without us.

They repeat what the file's metadata says, row by row, through a dictionary: DuckDB and Polars need no metadata then.
A reader of ours goes by the numbers, and refuses a file whose texts say otherwise, for someone changed one of the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from moe_core.errors import TraceError, shortened
from moe_core.routing.trace.metadata import TraceMetadata

DOMAIN, LABEL, TOKEN_TEXT = "domain", "label", "token_text"
TEXT_COLUMNS = (DOMAIN, TOKEN_TEXT, LABEL)
_TABLE = 2**22
"""Ids below this are looked up in a table; larger ones are searched."""

Numbers = npt.NDArray[np.integer[Any]]


def name_column(ids_T: Numbers, names: Sequence[str]) -> pa.DictionaryArray:
    """The name that each id is the place of: of a token's domain, or of its label; empty where the id is -1."""
    words, place = _distinct([*(valid_text(name) for name in names), None])
    codes_T = place[ids_T]
    indices = pa.array(codes_T, mask=codes_T < 0) if (codes_T < 0).any() else pa.array(codes_T)
    return pa.DictionaryArray.from_arrays(indices, pa.array(words, pa.string()))


def text_column(token_ids_T: Numbers, vocabulary: Mapping[int, str]) -> pa.DictionaryArray:
    """What each token reads; empty where the vocabulary does not have its id."""
    ids = np.unique(token_ids_T)
    texts = [vocabulary.get(token_id) for token_id in ids.tolist()]
    words, place = _distinct([None if text is None else valid_text(text) for text in texts])
    if ids[-1] < _TABLE:
        code_of_id = np.zeros(ids[-1] + 1, dtype=place.dtype)
        code_of_id[ids] = place
        codes_T = code_of_id[token_ids_T]
    else:
        codes_T = place[np.searchsorted(ids, token_ids_T)]
    indices = pa.array(codes_T, mask=codes_T < 0) if (place < 0).any() else pa.array(codes_T)
    return pa.DictionaryArray.from_arrays(indices, pa.array(words, pa.string()))


class TextCheck:
    """Compares the columns of a file with its metadata, a batch of rows at a time, in order."""

    def __init__(self, metadata: TraceMetadata) -> None:
        self._rows = 0
        self._domains = _Meaning(dict(enumerate(metadata.domains)))
        self._vocabulary = _Meaning(metadata.vocabulary)
        self._labels = _Meaning(dict(enumerate(metadata.labels)))

    def check(self, table: pa.Table) -> None:
        """Raise TraceError naming the first row where a text is another than its number means."""
        for name, number_name, meaning in (
            (DOMAIN, "domain_id", self._domains),
            (TOKEN_TEXT, "token_id", self._vocabulary),
            (LABEL, "label_id", self._labels),
        ):
            if name in table.column_names and number_name in table.column_names:
                self._check_column(table, name, number_name, meaning)
        self._rows += len(table)

    def _check_column(self, table: pa.Table, name: str, number_name: str, meaning: _Meaning) -> None:
        kind = table.schema.field(name).type
        text = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(text) or pa.types.is_large_string(text) or pa.types.is_string_view(text)):
            raise TraceError(f"column {name!r} is {kind}; expected text, or no such column")
        numbers_T = table.column(number_name).to_numpy()
        start = 0
        for chunk in table.column(name).chunks:
            coded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
            own_T = numbers_T[start : start + len(chunk)]
            wrong_T = meaning.of_texts(coded) != meaning.of_numbers(own_T)
            if wrong_T.any():
                row = int(wrong_T.argmax())
                raise TraceError(
                    f"row {self._rows + start + row}: {name} is {shortened(chunk[row].as_py())}, but {number_name} "
                    f"{own_T[row]} is {shortened(meaning.texts.get(int(own_T[row])))} by the metadata; expected the "
                    f"same: make the trace again, or leave the column {name} out"
                )
            start += len(chunk)


class _Meaning:
    """Which text stands for which number. Different texts get numbers of their own, so that arrays are compared."""

    def __init__(self, texts: Mapping[int, str]) -> None:
        self.texts = texts
        words, codes = _distinct(list(texts.values()))
        self._words = pa.array(words, pa.string())
        self._last: tuple[pa.Array, npt.NDArray[np.int64]] | None = None
        """The dictionary of the last rows, which are often of the same row group, and what its texts mean."""
        ids = np.fromiter(texts, dtype=np.int64, count=len(texts))
        order = np.argsort(ids)
        self._ids, self._code_of_id = ids[order], codes[order].astype(np.int64)
        self._table: npt.NDArray[np.int64] | None = None
        if len(ids) and self._ids[-1] < _TABLE:
            self._table = np.full(int(self._ids[-1]) + 2, -1, dtype=np.int64)
            self._table[self._ids] = self._code_of_id

    def of_numbers(self, numbers_T: Numbers) -> npt.NDArray[np.int64]:
        """[T] code of the text that each number means; -1 = none."""
        if self._table is not None:
            return self._table[np.minimum(numbers_T, len(self._table) - 1)]
        if not len(self._ids):
            return np.full(len(numbers_T), -1, dtype=np.int64)
        place_T = np.minimum(np.searchsorted(self._ids, numbers_T), len(self._ids) - 1)
        return np.where(self._ids[place_T] == numbers_T, self._code_of_id[place_T], -1)

    def of_texts(self, coded: pa.DictionaryArray) -> npt.NDArray[np.int64]:
        """[T] code of each text; -1 = it is empty, -2 = no number means it."""
        if self._last is None or not coded.dictionary.equals(self._last[0]):
            found = pa.compute.index_in(coded.dictionary.cast(pa.string()), value_set=self._words).fill_null(-2)
            self._last = coded.dictionary, np.append(found.to_numpy(), -1).astype(np.int64)
        codes = self._last[1]
        places_T: Numbers = coded.indices.cast(pa.int64()).fill_null(len(codes) - 1).to_numpy()
        return codes[places_T]


def _distinct(texts: Sequence[str | None]) -> tuple[list[str], npt.NDArray[np.int32]]:
    """The different ones, and the place of each among them; -1 = it is None."""
    places: dict[str, int] = {}
    found = [-1 if text is None else places.setdefault(text, len(places)) for text in texts]
    return list(places), np.array(found, dtype=np.int32)


def valid_text(text: str) -> str:
    """Half of a surrogate pair, which JSON can hold, is no text in Parquet."""
    return text.encode("utf-8", "replace").decode("utf-8")
