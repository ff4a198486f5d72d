"""Rows of text out of the three table formats, one after the other; a fault is named with its file and line or row.

A row has a text and, where the file says so, a domain, a source and a split. Field names match whatever their case.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_core.data.text_blocks import clean_blocks, decoded_blocks, lines_of, unix_lines
from moe_core.errors import DataError

MAX_CSV_FIELD = 2**31 - 1
"""Python refuses CSV fields over 128 KiB unless told otherwise; documents are often longer."""
PARQUET_ROWS, PARQUET_BUFFER = 1024, 2**20
"""Rows that are decoded together, and bytes that are read together: neither depends on how the file is grouped."""


@dataclass(frozen=True)
class Row:
    """One document of a table; `text` is clean (see `clean_text`)."""

    text: str
    domain: str | None
    source: str | None
    split: str | None
    """As the file says it; training decides for itself (see splits.py)."""
    number: int
    """Line of a .jsonl file, row of data of the others; from 1."""


def read_text(path: Path) -> str:
    """A whole file as clean text. Raises DataError with line and byte offset where it is not UTF-8."""
    return "".join(clean_blocks(path))


def read_jsonl(path: Path) -> Iterator[Row]:
    """A JSON object a line with the field `text`, optionally `domain`, `source`, `split`; blank lines do not count."""
    for number, line in enumerate(lines_of(decoded_blocks(path)), start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(
                f'{str(path)!r} {place} is not valid JSON ({reason}); expected an object such as {{"text": "..."}}'
            ) from None
        if not isinstance(value, dict):
            raise DataError(
                f'{str(path)!r} {place} is {_kind_in_words(value)}; expected an object such as {{"text": "..."}}'
            )
        columns = Columns.find(list(value), path, place)
        yield checked_row(path, place, number, *(None if key is None else value[key] for key in columns.keys))


def read_csv(path: Path) -> Iterator[Row]:
    """Comma-separated with a header line that has a column `Text`, optionally `Domain`, `Source` and `Split`."""
    csv.field_size_limit(MAX_CSV_FIELD)
    reader = csv.reader(unix_lines(path), strict=True)
    try:
        header = next(reader, [])
        columns = Columns.find([name.strip() for name in header], path, "line 1")
        positions = [None if key is None else [name.strip() for name in header].index(key) for key in columns.keys]
        number = 0
        for fields in reader:
            if not fields:
                continue
            number += 1
            place = f"row {number} (line {reader.line_num})"
            if len(fields) != len(header):
                raise DataError(
                    f"{str(path)!r} {place} has {len(fields)} fields; expected {len(header)} as in the header; "
                    "put texts that hold commas or line ends in double quotes"
                )
            yield checked_row(
                path, place, number, *(None if position is None else fields[position] for position in positions)
            )
    except csv.Error as error:
        raise DataError(
            f"{str(path)!r} line {reader.line_num} is not valid CSV ({error}); expected comma-separated fields, "
            "quoted with double quotes"
        ) from None


def read_parquet(path: Path) -> Iterator[Row]:
    """A Parquet file with a string column `text`, optionally `domain`, `source` and `split`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=PARQUET_BUFFER) as file:
            columns = Columns.find(file.schema_arrow.names, path, "its schema")
            names = [key for key in columns.keys if key is not None]
            for batch in file.iter_batches(PARQUET_ROWS, columns=names, use_threads=False):
                cells = [None if key is None else batch.column(key) for key in columns.keys]
                for row in range(batch.num_rows):
                    number += 1
                    place = f"row {number}"
                    try:
                        values = [None if column is None else column[row].as_py() for column in cells]
                    except UnicodeDecodeError as error:
                        raise DataError(
                            f"{str(path)!r} {place} is not valid UTF-8 at byte {error.start} of its cell; write it as "
                            "UTF-8"
                        ) from None
                    yield checked_row(path, place, number, *values)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{str(path)!r} is not a readable Parquet file ({_first_line(error)}); write it anew, or use .jsonl"
        ) from None


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
    ".csv": read_csv,
}


def clean_text(text: str, path: Path, place: str) -> str:
    """Line ends as LF. Raises DataError at a NUL or a lone surrogate, naming `place`."""
    text = _unix_newlines(text)
    at = text.find("\0")
    if at >= 0:
        raise DataError(f"{str(path)!r} {place} holds a NUL character; expected text: remove it or convert the file")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{str(path)!r} {place} holds the lone surrogate U+{ord(text[error.start]):04X}; expected text that UTF-8 "
            "can hold: remove it"
        ) from None
    return text


@dataclass(frozen=True)
class Columns:
    """What the fields text, domain, source and split are called in this file (None = it has no such field)."""

    keys: tuple[str, str | None, str | None, str | None]

    @classmethod
    def find(cls, names: Sequence[str], path: Path, place: str) -> Columns:
        """Whatever their case. Raises DataError where there is no text, or one name twice."""
        wanted = ("text", "domain", "source", "split")
        text, domain, source, split = (_name_like(name, names, path, place) for name in wanted)
        if text is None:
            raise DataError(
                f"{str(path)!r} has no Text column in {place}; found {_list_of_names(names)}; "
                "give the text column that name"
            )
        return cls((text, domain, source, split))


def _name_like(wanted: str, names: Sequence[str], path: Path, place: str) -> str | None:
    """The field of that name as it is written here: the exact one, else the only one in another case."""
    alike = [name for name in names if name.lower() == wanted]
    found = [name for name in alike if name == wanted] or alike
    if len(found) > 1:
        raise DataError(
            f"{str(path)!r} has {len(found)} columns {found[0]!r} in {place}; expected one: rename or remove the others"
        )
    return found[0] if found else None


def checked_row(path: Path, place: str, number: int, text: Any, domain: Any, source: Any, split: Any) -> Row:
    """The row, with clean text. Raises DataError naming `path` and `place`."""
    if not isinstance(text, str):
        raise DataError(f"{str(path)!r} {place} has a text that is {_kind_in_words(text)}; expected a string")
    return Row(
        text=clean_text(text, path, place),
        domain=_single_line(path, place, "domain", domain),
        source=_single_line(path, place, "source", source),
        split=_single_line(path, place, "split", split),
        number=number,
    )


def _single_line(path: Path, place: str, field: str, value: Any) -> str | None:
    """A domain, source or split on one line; whole numbers are taken as their digits, blank ones as missing."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(
            f"{str(path)!r} {place} has a {field} that is {_kind_in_words(value)}; expected a string or nothing"
        )
    return " ".join(clean_text(str(value), path, place).split()) or None


def _unix_newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _kind_in_words(value: Any) -> str:
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    names |= {list: "a list", dict: "an object", bytes: "bytes"}
    return names.get(type(value), f"a {type(value).__name__}")


def _list_of_names(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown or "none"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
