"""Answers of vLLM and SGLang saved as JSON or JSON lines, and arrays of the same names in a .npz file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from moe_core.errors import TraceError
from moe_core.progress import Progress, silent
from moe_core.recording_formats import ANSWER_KINDS, RECORDING_FORMATS, RecordingFormat, title_of
from moe_core.routing.recordings.one_text import Text, npz_record
from moe_core.routing.recordings.pieces import Integers, Options, Piece, Recording, read_token_ids, reason

LINES = (".jsonl", ".ndjson")
FIRST_TOKENS_MISSING = "of some texts the first tokens have no row: left out on request, or cached"
Record = dict[str, Any]
ANSWER_FORMATS = [one for one in RECORDING_FORMATS if one.file_kinds == ANSWER_KINDS]


def open_responses(path: Path, options: Options, format: str) -> Recording:
    """A .json, .jsonl or .npz file of one answer or several; each choice of an answer is a text of its own.

    `format` is the name of a format of answers, or auto. JSON lines pass through line by line; the other files
    are held whole.
    """
    first = next(_records_of(path, silent), None)
    if first is None:
        raise TraceError(f"{str(path)!r} is empty; expected the answers of a server, see docs/trace-format.md")
    found = _format_of(first[1])
    if found and found.name != format == ANSWER_FORMATS[0].name:
        raise TraceError(f"{str(path)!r} holds answers of {found.server}; say --format {found.name} or auto")
    if format == "auto":
        format = found.name if found else "array"
    recording = Recording(path, format, title_of(format))
    ids = read_token_ids(options.token_ids) if options.token_ids else None

    def pieces(progress: Progress) -> Iterator[Piece]:
        document = 0
        for number, (name, record) in enumerate(_records_of(path, progress)):
            where = f"{str(path)!r}, {name}" if name else repr(str(path))
            given = None if ids is None else _ids_of(number, ids, where)
            texts = texts_of(record, where, name, options, given)
            domain = _domain_number(recording, record)
            source_of_prompt: dict[int, int] = {}
            for text in texts:
                if text.start and text.prompt not in source_of_prompt:
                    recording.note(FIRST_TOKENS_MISSING)
                source = source_of_prompt.setdefault(text.prompt, document)
                yield from text.pieces(document, source, domain)
                document += 1

    recording.pieces = pieces
    return recording


def texts_of(
    record: Record, where: str, name: str, options: Options, given_ids: Integers | None = None
) -> Iterator[Text]:
    """The texts in one answer, by the reader that recognizes it.

    `where` and `name` say in messages which answer it is, see Text; `given_ids` are its ids where it has none. Raises
    TraceError for what is wrong with it.
    """
    reader = import_module((_format_of(record) or ANSWER_FORMATS[0]).reader)
    found: Iterator[Text] = reader.answer_texts(record, where, name, options, given_ids)
    return found


def _format_of(record: Record) -> RecordingFormat | None:
    """The format that recognizes an answer; None for plain arrays of the same names."""
    return next((one for one in reversed(ANSWER_FORMATS) if import_module(one.reader).is_answer(record)), None)


def _ids_of(number: int, ids: list[Integers], where: str) -> Integers:
    if number >= len(ids):
        raise TraceError(f"{where} has no token ids: --token-ids holds those of {len(ids)} texts; add them, in order")
    return ids[number]


def _records_of(path: Path, progress: Progress) -> Iterator[tuple[str, Record]]:
    """Every answer with its name for messages."""
    suffix = path.suffix.lower()
    if suffix == ".npz":
        yield "", npz_record(path)
    elif suffix in LINES:
        yield from _records_by_line(path, progress)
    else:
        yield from _records_of_whole_file(path)


def _records_by_line(path: Path, progress: Progress) -> Iterator[tuple[str, Record]]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            done = 0
            for number, line in enumerate(file, start=1):
                progress("reading", done, size)
                done += len(line)
                if line.strip():
                    yield (
                        f"line {number}",
                        _checked_record(_parse_json(line, path, number), f"{str(path)!r}, line {number}"),
                    )
    except OSError as error:
        raise TraceError(f"cannot read {str(path)!r}: {reason(error)}; check the path") from None


def _records_of_whole_file(path: Path) -> Iterator[tuple[str, Record]]:
    try:
        content = _parse_json(path.read_bytes(), path, None)
    except OSError as error:
        raise TraceError(f"cannot read {str(path)!r}: {reason(error)}; check the path") from None
    if isinstance(content, list) and content and isinstance(content[0], dict):
        for number, item in enumerate(content):
            yield f"record {number}", _checked_record(item, f"{str(path)!r}, record {number}")
    elif isinstance(content, list):
        yield "", {"routed_experts": content}
    else:
        yield "", _checked_record(content, repr(str(path)))


def _parse_json(text: bytes, path: Path, line: int | None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {line or error.lineno}, column {error.colno}"
        raise TraceError(f"{str(path)!r}, {place}: {error.msg}; expected JSON") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise TraceError(f"{str(path)!r} is no JSON ({reason(error)}); expected a server's answer") from None


def _checked_record(value: Any, where: str) -> Record:
    if not isinstance(value, dict):
        raise TraceError(f"{where} is {type(value).__name__}; expected an object with routed_experts")
    return value


def _domain_number(recording: Recording, record: Record) -> int:
    """A field `domain` is no engine's; it is there for whoever wants to compare kinds of text."""
    name = str(record.get("domain", "all"))
    if name not in recording.domains:
        recording.domains.append(name)
    return recording.domains.index(name)
