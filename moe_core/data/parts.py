"""Long texts in parts, so that tokenising takes bounded memory however long a text is.

The tokenizer library keeps some hundred bytes for every character that it reads at once. A byte-level pre-tokenizer
never joins a character that is no space to a space after it, so a text may be cut between the two: the ids of the
parts, one after the other, are those of the text. A stretch without spaces has no such place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from moe_core.errors import DataError

PART_CHARACTERS = 2**16
"""Characters that a thread of the tokenizer reads at once, where the text can be cut."""
LONGEST_STRETCH = 2**24
"""Characters without a space that can be encoded; they take about 2 GiB."""
# Spaces for Python and for the pre-tokenizer alike, and only after what is a space for neither.
_CUT = re.compile(r"(?<=\S)[ \n\t\r]")
_UP_TO_LAST_CUT = re.compile(r"(?s:.*)(?<=\S)[ \n\t\r]")


def parts_alike(text: str) -> Iterator[str]:
    """Parts of `text` whose ids make up its ids. Raises DataError for a stretch of more than LONGEST_STRETCH."""
    start = 0
    while len(text) - start > PART_CHARACTERS:
        end = _last_cut(text, start) or _first_cut_after(text, start + PART_CHARACTERS)
        if end - start > LONGEST_STRETCH:
            raise DataError(
                f"the text that begins with {text[start : start + 30]!r} has {end - start:,} characters without a "
                f"space or line end; expected at most {LONGEST_STRETCH:,}: break it into lines"
            )
        yield text[start:end]
        start = end
    if start < len(text) or not text:
        yield text[start:]


def parts_anyhow(text: str) -> Iterator[str]:
    """Parts of at most PART_CHARACTERS, cut as by `parts_alike` where that goes, else within a stretch."""
    start = 0
    while len(text) - start > PART_CHARACTERS:
        end = _last_cut(text, start) or start + PART_CHARACTERS
        yield text[start:end]
        start = end
    if start < len(text) or not text:
        yield text[start:]


def _last_cut(text: str, start: int) -> int | None:
    """The last place for a cut that leaves a part of at most PART_CHARACTERS."""
    found = _UP_TO_LAST_CUT.match(text, start + 1, start + PART_CHARACTERS + 1)
    return found.end() - 1 if found else None


def _first_cut_after(text: str, place: int) -> int:
    found = _CUT.search(text, place)
    return found.start() if found else len(text)
