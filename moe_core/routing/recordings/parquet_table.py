"""A generic Parquet table of routing, one row for each token (docs/trace-format.md has the columns)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from moe_core.errors import TraceError
from moe_core.progress import Progress
from moe_core.recording_formats import title_of
from moe_core.routing.recordings.pieces import (
    PIECE_TOKENS,
    Integers,
    Options,
    Piece,
    Recording,
    TokenTexts,
    reason,
)
from moe_core.routing.trace.parquet import METADATA_KEY

EXPERT_COLUMN = re.compile(r"layer_(\d+)_expert_(\d+)")
NESTED, NESTED_WEIGHTS = "routed_experts", "routed_weights"
TEXT = "token_text"
EXPECTED = f"layer_0_expert_0, layer_0_expert_1, ... or {NESTED}"


def open_recording(path: Path, options: Options) -> Recording:
    """Check the columns; rows are read PIECE_TOKENS at a time."""
    if options.token_ids is not None:
        raise TraceError(f"{str(path)!r} is a table: its token ids are its column token_id; leave --token-ids out")
    try:
        with pq.ParquetFile(path) as file:
            schema: pa.Schema = file.schema_arrow
            rows = int(file.metadata.num_rows)
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: names that are no text
        raise TraceError(f"{str(path)!r} is no readable Parquet file ({reason(error)}); write it again") from None
    metadata = schema.metadata or {}
    if METADATA_KEY in metadata:
        raise TraceError(f"{str(path)!r} is a trace already; open it as it is")
    table = _Table(path, schema, *_wide_columns(path, schema.names))
    table.check_types()
    recording = Recording(
        path,
        "parquet",
        title_of("parquet"),
        layers=table.layers or None,
        num_experts=_experts_in_metadata(path, metadata),
        domains=table.domains,
    )
    if "document_id" not in schema.names:
        recording.note("without a column document_id the whole table counts as one text")

    def pieces(progress: Progress) -> Iterator[Piece]:
        done, reader = 0, _Reader(table)
        try:
            with pq.ParquetFile(path, pre_buffer=False) as file:  # else all that was read stays in memory
                for batch in file.iter_batches(batch_size=PIECE_TOKENS, columns=table.wanted):
                    progress("reading", done, rows)
                    yield reader.piece(batch, done)
                    done += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise TraceError(f"{str(path)!r} is damaged after row {done} ({reason(error)}); write it again") from None

    recording.pieces = pieces
    return recording


@dataclass
class _Table:
    path: Path
    schema: pa.Schema
    layers: list[int]
    """[L] numbers of the layers where each has columns of its own; empty where one column holds all."""
    top_k: int
    domains: list[str] = field(default_factory=list)

    @property
    def experts(self) -> list[str]:
        return [f"layer_{layer}_expert_{s}" for layer in self.layers for s in range(self.top_k)] or [NESTED]

    @property
    def weights(self) -> list[str]:
        """Columns of the weights; empty where there are none."""
        names = [f"layer_{layer}_score_{s}" for layer in self.layers for s in range(self.top_k)] or [NESTED_WEIGHTS]
        return names if any(name in self.schema.names for name in names) else []

    @property
    def wanted(self) -> list[str]:
        others = ("token_id", TEXT, "document_id", "source_id", "position", "domain")
        return [*self.experts, *self.weights, *(name for name in others if name in self.schema.names)]

    def check_types(self) -> None:
        for name in self.wanted:
            if name not in self.schema.names:
                raise TraceError(
                    f"{str(self.path)!r}: column {name!r} is missing; expected it beside {self.wanted[0]!r}"
                )
            kind = self.schema.field(name).type
            while self.layers == [] and name in (NESTED, NESTED_WEIGHTS) and _is_list(kind):
                kind = kind.value_type
            if not _fits_column(name, kind):
                raise TraceError(
                    f"{str(self.path)!r}: column {name!r} is {self.schema.field(name).type}; {_expected_type(name)}"
                )


class _Reader:
    """One reading of the table: what must be remembered from batch to batch."""

    def __init__(self, table: _Table) -> None:
        self.table = table
        self.numbers: dict[str, dict[str, int]] = {"document_id": {}, "source_id": {}}
        self.next_position: dict[int, int] = {}

    def piece(self, batch: pa.RecordBatch, first: int) -> Piece:
        names = batch.schema.names
        documents_T = self._numbers_of_names(batch, "document_id", first)
        documents_T = np.zeros(batch.num_rows, dtype=np.int64) if documents_T is None else documents_T
        positions_T = (
            self._whole_numbers(batch, "position", first)
            if "position" in names
            else self._places_in_document(documents_T)
        )
        return Piece(
            experts=self._expert_cells(batch, self.table.experts, first).astype(np.int64),
            weights=self._expert_cells(batch, self.table.weights, first) if self.table.weights else None,
            token_ids=self._whole_numbers(batch, "token_id", first) if "token_id" in names else None,
            texts=_texts_of(batch.column(TEXT)) if TEXT in names else None,
            documents=documents_T,
            sources=self._numbers_of_names(batch, "source_id", first),
            positions=positions_T,
            domains=self._domain_numbers(batch, first),
            row=lambda t: f"row {first + t}",
            column=self._column_name,
        )

    def _column_name(self, layer: int, slot: int) -> str:
        if self.table.layers:
            return f"column 'layer_{self.table.layers[layer]}_expert_{slot}'"
        return f"column {NESTED!r}, layer {layer}, slot {slot}"

    def _expert_cells(self, batch: pa.RecordBatch, names: list[str], first: int) -> npt.NDArray[Any]:
        """[T,L,K] of the columns of all layers and slots, or of the one with lists of lists."""
        if self.table.layers:
            columns = [self._column_without_gaps(batch, name, first).to_numpy(zero_copy_only=False) for name in names]
            return np.stack(columns, axis=1).reshape(batch.num_rows, len(self.table.layers), self.table.top_k)
        array = self._column_without_gaps(batch, names[0], first)
        shape = [batch.num_rows]
        for level in ("layers", "slots"):
            lengths = pa.compute.list_value_length(array).to_numpy(zero_copy_only=False)
            wrong = np.flatnonzero(lengths != lengths[0])
            if wrong.size or not lengths[0]:
                item = int(wrong[0]) if wrong.size else 0
                row = first + item // int(np.prod(shape[1:]))
                raise self._error(
                    f"row {row}, column {names[0]!r} has {lengths[item]:.0f} {level}, row {first} has "
                    f"{lengths[0]:.0f}; expected the same in every row, one or more"
                )
            shape.append(int(lengths[0]))
            array = array.flatten()
            if array.null_count:
                item = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
                row = first + item // int(np.prod(shape[1:]))
                raise self._error(f"row {row}, column {names[0]!r} has an empty place; expected a value in each")
        values: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False).reshape(shape)
        return values

    def _whole_numbers(self, batch: pa.RecordBatch, name: str, first: int) -> Integers:
        values: Integers = self._column_without_gaps(batch, name, first).to_numpy(zero_copy_only=False)
        return values.astype(np.int64)

    def _column_without_gaps(self, batch: pa.RecordBatch, name: str, first: int) -> pa.Array:
        column = batch.column(name)
        if column.null_count:
            row = first + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
            raise self._error(f"row {row}, column {name!r} is empty; expected a value in each row")
        return column

    def _numbers_of_names(self, batch: pa.RecordBatch, name: str, first: int) -> Integers | None:
        """Whole numbers as they are; names numbered as they come."""
        if name not in batch.schema.names:
            return None
        column = self._column_without_gaps(batch, name, first)
        if pa.types.is_integer(column.type):
            values = self._whole_numbers(batch, name, first)
            limits = np.iinfo(np.int32)
            wrong = np.flatnonzero((values < limits.min) | (values > limits.max))
            if wrong.size:
                value = values[wrong[0]]
                raise self._error(
                    f"row {first + wrong[0]}, column {name!r}: {value}; expected {limits.min} to {limits.max}"
                )
            return values
        known = self.numbers[name]
        return _codes_of_texts(column, lambda text: known.setdefault(text, len(known)))

    def _domain_numbers(self, batch: pa.RecordBatch, first: int) -> Integers | None:
        domains = self.table.domains
        if "domain" not in batch.schema.names:
            if not domains:
                domains.append("all")
            return None

        def number(text: str) -> int:
            if text not in domains:
                domains.append(text)
            return domains.index(text)

        return _codes_of_texts(self._column_without_gaps(batch, "domain", first), number)

    def _places_in_document(self, documents_T: Integers) -> Integers:
        """How many tokens of the same document come before each."""
        positions_T = np.zeros(len(documents_T), dtype=np.int64)
        for document in np.unique(documents_T).tolist():
            here_T = documents_T == document
            begin, count = self.next_position.get(document, 0), int(here_T.sum())
            positions_T[here_T] = np.arange(begin, begin + count)
            self.next_position[document] = begin + count
        return positions_T

    def _error(self, message: str) -> TraceError:
        return TraceError(f"{str(self.table.path)!r}: {message}")


def _codes_of_texts(column: pa.Array, number: Callable[[str], int]) -> Integers:
    """Each text as its number; only different texts are looked at one by one."""
    coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    numbers = np.array([number(text) for text in coded.dictionary.to_pylist()], dtype=np.int64)
    values: Integers = numbers[coded.indices.to_numpy(zero_copy_only=False)]
    return values


def _texts_of(column: pa.Array) -> TokenTexts:
    """What each token reads; a row may be without."""
    coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    codes_T = pa.compute.fill_null(coded.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    return TokenTexts(coded.dictionary.to_pylist(), codes_T)


def _wide_columns(path: Path, names: list[str]) -> tuple[list[int], int]:
    """Layers and K of the columns layer_{l}_expert_{s}; no layers where there is one column of lists."""
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise TraceError(f"{str(path)!r} has several columns {twice[0]!r}; expected one of each name")
    found: dict[int, set[int]] = {}
    for name in names:
        match = EXPERT_COLUMN.fullmatch(name)
        if match:
            found.setdefault(int(match[1]), set()).add(int(match[2]))
    if not found:
        if NESTED not in names:
            raise TraceError(f"{str(path)!r} has columns {', '.join(names[:8])}; expected {EXPECTED}")
        return [], 0
    top_k = max(map(len, found.values()))
    for layer in sorted(found):
        missing = sorted(set(range(top_k)) - found[layer])
        if missing:
            raise TraceError(
                f"{str(path)!r}: column 'layer_{layer}_expert_{missing[0]}' is missing; expected {top_k} a layer"
            )
    return sorted(found), top_k


def _experts_in_metadata(path: Path, metadata: dict[bytes, bytes]) -> int | None:
    text = metadata.get(b"num_experts")
    if text is None:
        return None
    if not text.isdigit() or int(text) < 2:
        raise TraceError(f"{str(path)!r}: num_experts in the metadata is {text!r}; expected a number of 2 or more")
    return int(text)


def _fits_column(name: str, kind: pa.DataType) -> bool:
    if name in ("document_id", "source_id", "domain", TEXT) and pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if name in ("domain", TEXT):
        return bool(is_text)
    if name in ("document_id", "source_id"):
        return bool(is_text or pa.types.is_integer(kind))
    if name == NESTED_WEIGHTS or "_score_" in name:
        return bool(pa.types.is_floating(kind))
    return bool(pa.types.is_integer(kind))


def _expected_type(name: str) -> str:
    if name in (NESTED, NESTED_WEIGHTS):
        return "expected lists [layers] of lists [k] of numbers"
    if name in ("domain", TEXT):
        return "expected text"
    if name in ("document_id", "source_id"):
        return "expected whole numbers or text"
    return "expected numbers" if "_score_" in name else "expected whole numbers"


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
