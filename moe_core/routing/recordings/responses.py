"""Answers of vLLM and SGLang saved as JSON or JSON lines, and arrays of the same names in a .npz file."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from moe_core.errors import TraceError
from moe_core.progress import Progress, silent
from moe_core.recording_formats import ANSWER_KINDS, RECORDING_FORMATS, RecordingFormat, title_of
from moe_core.routing.recordings.json_records import Record, json_records
from moe_core.routing.recordings.one_text import Text, npz_record
from moe_core.routing.recordings.pieces import Integers, Options, Piece, Recording, read_token_ids

FIRST_TOKENS_MISSING = "of some texts the first tokens have no row: left out on request, or cached"
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
    if path.suffix.lower() == ".npz":
        yield "", npz_record(path)
    else:
        yield from json_records(path, progress, _record_of_array)


def _record_of_array(content: Any) -> Record | None:
    """Nested numbers without names are routed_experts themselves."""
    return {"routed_experts": content} if isinstance(content, list) else None


def _domain_number(recording: Recording, record: Record) -> int:
    """A field `domain` is no engine's; it is there for whoever wants to compare kinds of text."""
    return recording.domain_number(str(record.get("domain", "all")))
