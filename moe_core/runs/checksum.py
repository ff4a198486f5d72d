"""A checksum inside the file it is of: copied, renamed and replaced with it, in one piece.

A JSON object ends with the key "sha256", the hash of all bytes before that key. A line of a file that is appended to
ends the same way, with the first 16 digits. Parquet tables have theirs, see table_checksum.py. Decision 0018 says why
it is not a file beside.

What was written before there were checksums has none. It is read as ever and called "not verified".
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from moe_core.errors import RunError, first_fault
from moe_core.runs.files import json_object

Read = TypeVar("Read")
KEY = "sha256"
_LINE_DIGITS = 16
_OF_FILE = re.compile(rb',\n  "sha256": "([0-9a-f]{64})"\n}\n\Z')
_OF_LINE = re.compile(rb',"sha256":"([0-9a-f]{16})"}\Z')


def with_checksum(tree: Mapping[str, Any], indent: int | None = 2) -> bytes:
    """A JSON object of at least one key, for a file that is replaced as a whole."""
    body = json.dumps(tree, indent=indent, allow_nan=False).removesuffix("}").removesuffix("\n").encode()
    return body + f',\n  "{KEY}": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()


def is_verified(content: bytes, where: str) -> bool:
    """True if the file is as it was written, False if it carries no checksum. Raises RunError if it was changed."""
    found = _OF_FILE.search(content)
    if found is None and f'"{KEY}"'.encode() not in content:
        return False
    if found is None or hashlib.sha256(content[: found.start()]).hexdigest().encode() != found[1]:
        raise RunError(
            f"{where!r} was changed after it was written: its SHA-256 is another; restore a copy (if the change "
            f"was meant, take the key {KEY!r} out; the file then counts as not verified)"
        )
    return True


def read_typed(content: bytes, path: Path, reader: TypeAdapter[Read], wrong: str, remedy: str) -> tuple[Read, bool]:
    """What a JSON file of a run holds, as `reader` types it, and whether it was verified.

    Raises RunError that names the file and its first wrong field; `wrong` says what it is not, `remedy` what to do.
    """
    verified = is_verified(content, str(path))
    tree = json_object(content, path)
    tree.pop(KEY, None)
    try:
        return reader.validate_json(json.dumps(tree)), verified
    except ValidationError as error:
        raise RunError(f"{str(path)!r} {wrong} ({first_fault(error).line}); {remedy}") from None


def line_with_checksum(tree: Mapping[str, Any]) -> bytes:
    """A JSON object of at least one key as one line, line feed included, for a file that is appended to."""
    body = json.dumps(tree, separators=(",", ":"), allow_nan=False).removesuffix("}").encode()
    return body + f',"{KEY}":"{_line_digest(body)}"}}\n'.encode()


def is_verified_line(line: bytes) -> bool:
    """As is_verified, of a line without its line feed. Raises ValueError if it was changed."""
    found = _OF_LINE.search(line)
    if found is None and f'"{KEY}"'.encode() not in line:
        return False
    if found is None or _line_digest(line[: found.start()]).encode() != found[1]:
        raise ValueError("its checksum is another")
    return True


def unverified_words(names: Sequence[str]) -> str:
    """One sentence about files that carry no checksum."""
    return f"Not verified, as from before files carried checksums: {', '.join(names)}."


def _line_digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:_LINE_DIGITS]
