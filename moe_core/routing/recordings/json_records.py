"""The objects in a file of JSON: one, a list of them, or one a line in a file that is larger than memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moe_core.errors import TraceError
from moe_core.progress import Progress
from moe_core.routing.recordings.pieces import reason

LINES = (".jsonl", ".ndjson")
MAX_LINE_BYTES = 2**28
"""The routing of 100,000 tokens in 60 layers and 8 slots as base64 is a quarter of that."""
Record = dict[str, Any]


def json_records(
    path: Path,
    progress: Progress,
    of_other: Callable[[Any], Record | None] = lambda content: None,  # noqa: ARG005
    most_bytes: int | None = None,
) -> Iterator[tuple[str, Record]]:
    """Every object with its name for messages: "line 3", "record 0", "" for a file that is one object.

    Lines pass through one by one; another file is held whole, of at most `most_bytes`. `of_other` makes an object of a
    whole file that is none. Raises TraceError naming line and column.
    """
    try:
        if path.suffix.lower() in LINES:
            yield from _records_by_line(path, progress)
        else:
            yield from _records_of_whole_file(path, of_other, most_bytes)
    except OSError as error:
        raise TraceError(f"cannot read {str(path)!r}: {reason(error)}; check the path") from None


def _records_by_line(path: Path, progress: Progress) -> Iterator[tuple[str, Record]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        done = number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            progress("reading", done, size)
            done += len(line)
            where = f"{str(path)!r}, line {number}"
            if len(line) > MAX_LINE_BYTES:
                raise TraceError(f"{where} has more than {MAX_LINE_BYTES:,} bytes; expected one object a line")
            if line.strip():
                yield f"line {number}", _checked_record(_parsed_json(line, path, number), where)


def _records_of_whole_file(
    path: Path, of_other: Callable[[Any], Record | None], most_bytes: int | None
) -> Iterator[tuple[str, Record]]:
    size = path.stat().st_size
    if most_bytes is not None and size > most_bytes:
        raise TraceError(
            f"{str(path)!r} has {size:,} bytes, and JSON is held whole; expected {most_bytes:,} at most, or a .jsonl "
            "file with one object a line"
        )
    content = _parsed_json(path.read_bytes(), path, None)
    if isinstance(content, list) and content and isinstance(content[0], dict):
        for number, item in enumerate(content):
            yield f"record {number}", _checked_record(item, f"{str(path)!r}, record {number}")
    else:
        yield "", of_other(content) or _checked_record(content, repr(str(path)))


def _parsed_json(text: bytes, path: Path, line: int | None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {line or error.lineno}, column {error.colno}"
        raise TraceError(f"{str(path)!r}, {place}: {error.msg}; expected JSON") from None
    except (ValueError, RecursionError) as error:  # no UTF-8, a number of a million digits, a million brackets
        raise TraceError(f"{str(path)!r} is no JSON ({reason(error)}); expected a recording") from None


def _checked_record(value: Any, where: str) -> Record:
    if not isinstance(value, dict):
        raise TraceError(f"{where} is {type(value).__name__}; expected an object with its fields")
    return value
