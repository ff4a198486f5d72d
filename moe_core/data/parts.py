"""Long texts in parts, so that tokenising takes bounded memory however long a text is.

The tokenizer library keeps some hundred bytes for every character that it reads at once. A byte-level pre-tokenizer
never joins a character that is no space to a space after it, so a text may be cut between the two: the ids of the
parts, one after the other, are those of the text. A stretch without spaces has no such place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from moe_core.errors import DataError

PART_CHARACTERS = 2**18
"""Characters that are read at once, where the text can be cut."""
LONGEST_STRETCH = 2**24
"""Characters without a space that can be encoded; they take about 2 GiB."""
# Spaces for Python and for the pre-tokenizer alike, and only after what is a space for neither.
_CUT = re.compile(r"(?<=\S)[ \n\t\r]")


def parts_alike(text: str) -> Iterator[str]:
    """Parts of `text` whose ids make up its ids. Raises DataError for a stretch of more than LONGEST_STRETCH."""
    start = 0
    while len(text) - start > PART_CHARACTERS:
        end = _next_cut(text, start)
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
        end = min(_next_cut(text, start), start + PART_CHARACTERS)
        yield text[start:end]
        start = end
    if start < len(text) or not text:
        yield text[start:]


def _next_cut(text: str, start: int) -> int:
    """The last place for a cut within PART_CHARACTERS, else the first one after them, else the end."""
    window = text[start + 1 : start + PART_CHARACTERS + 1]
    for place in range(len(window) - 1, 0, -1):
        if window[place] in " \n\t\r" and not window[place - 1].isspace():
            return start + 1 + place
    found = _CUT.search(text, start + PART_CHARACTERS)
    return found.start() if found else len(text)
