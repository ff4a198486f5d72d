"""Texts that a user typed, each under a name that a link can hold: the text itself never stands in an address.

They lie in a folder that is the user's alone, one file a text, and are few: what was read longest ago goes first. A
name is drawn at random, so that nobody finds a text by trying names.
"""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from moe_core.errors import RunError
from moe_core.files import private_folder, remove_stale, replaced
from moe_core.runs.files import read_file

FOLDER = "texts"
MOST = 100
"""Texts that are kept."""
MOST_BYTES = 256 << 10
"""Of one text in UTF-8; far more than the tokens that a page reads."""
_NAME = re.compile(r"saved-[0-9a-f]{24}")
"""Nothing else is looked for on the disk, whatever a link says."""


@dataclass(frozen=True)
class SavedText:
    """A text that is kept."""

    name: str
    """As in a link: "saved-" and 96 random bits in hexadecimal digits."""
    text: str
    used_at: float
    """When it was saved or last looked up by its name; seconds since 1970."""


def save_text(text: str) -> str | None:
    """The name under which the text is kept from now on; None where it is longer than MOST_BYTES, is no Unicode, or the
    disk refuses it. A text that is kept already has its name."""
    with suppress(OSError, UnicodeEncodeError):
        data = text.encode()
        if len(data) > MOST_BYTES:
            return None
        known = next((one for one in saved_texts() if one.text == text), None)
        name = known.name if known else f"saved-{secrets.token_hex(12)}"
        with replaced(private_folder(FOLDER) / name) as file:
            file.write(data)
        _make_room()
        return name
    return None


def find_text(name: str) -> str | None:
    """The text of this name; None where there is none, as it was deleted, gave way to newer ones, or never was here."""
    place = _place(name)
    text = None if place is None else _read(place)
    if place is not None and text is not None:
        with suppress(OSError):
            os.utime(place)
    return text


def saved_texts() -> list[SavedText]:
    """All of them, the last used first."""
    return [SavedText(place.name, text, at) for at, place in _files() if (text := _read(place)) is not None]


def delete_text(name: str) -> None:
    """Keep the text of this name no longer; one that is gone already is no error."""
    if (place := _place(name)) is not None:
        with suppress(OSError):
            place.unlink()


def _place(name: str) -> Path | None:
    return private_folder(FOLDER) / name if _NAME.fullmatch(name) else None


def _read(place: Path) -> str | None:
    """None where there is no such file or it was damaged."""
    with suppress(OSError, RunError, UnicodeDecodeError):
        return read_file(place, MOST_BYTES).decode()
    return None


def _make_room() -> None:
    remove_stale(private_folder(FOLDER))
    for _, place in _files()[MOST:]:
        delete_text(place.name)


def _files() -> list[tuple[float, Path]]:
    """When each was used, and where it lies; the last used first."""
    found = []
    with suppress(OSError):
        for path in private_folder(FOLDER).iterdir():
            with suppress(OSError):  # deleted meanwhile
                if _NAME.fullmatch(path.name):
                    found.append((path.stat().st_mtime, path))
    return sorted(found, reverse=True)
