"""Long texts in parts, so that tokenising takes bounded memory however long a text is.

The tokenizer library keeps some hundred bytes for every character that it reads at once. A byte-level pre-tokenizer
never joins a character that is no space to a space after it (tiktoken's never to a blank or a tab, but signs to line
ends), so a text may be cut between the two: the ids of the parts, one after the other, are those of the text. A stretch
without spaces has no such place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from moe_core.errors import DataError

PART_CHARACTERS = 2**16
"""Characters that a thread of the tokenizer reads at once, where the text can be cut."""
LONGEST_STRETCH = 2**24
"""Characters without a space that can be encoded; they take about 2 GiB."""
SPACES = " \n\t\r"
"""Spaces for Python and for the pre-tokenizer alike. A cut stands before one, after what is a space for neither."""
BLANKS = " \t"
CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+\z|\s*[\r\n]|"
    r"\s+(?!\S)|\s"
)
"""How tiktoken's cl100k_base cuts text into pieces, as the `tokenizers` library reads it."""
O200K_PATTERN = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
"""The same of o200k_base."""


def cuts_before(pre_tokenizer: Mapping[str, Any]) -> str:
    """The characters before which text may be cut for a pre-tokenizer of the `tokenizers` library; "" for none known.

    `pre_tokenizer`: as its JSON has it.
    """
    match pre_tokenizer:
        case {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}:
            return SPACES
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False},
            ],
        } if pattern in (CL100K_PATTERN, O200K_PATTERN):
            return BLANKS
    return ""


def parts_alike(text: str, before: str = SPACES) -> Iterator[str]:
    """Parts of `text` whose ids make up its ids. Raises DataError for a stretch of more than LONGEST_STRETCH.

    `before`: the characters that it may be cut before, see `cuts_before`.
    """
    start = 0
    while len(text) - start > PART_CHARACTERS:
        end = _last_cut(text, start, before) or _first_cut_after(text, start + PART_CHARACTERS, before)
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
        end = _last_cut(text, start, SPACES) or start + PART_CHARACTERS
        yield text[start:end]
        start = end
    if start < len(text) or not text:
        yield text[start:]


@cache
def _cut(before: str) -> re.Pattern[str]:
    return re.compile(rf"(?<=\S)[{before}]")


@cache
def _up_to_last_cut(before: str) -> re.Pattern[str]:
    return re.compile(rf"(?s:.*)(?<=\S)[{before}]")


def _last_cut(text: str, start: int, before: str) -> int | None:
    """The last place for a cut that leaves a part of at most PART_CHARACTERS."""
    found = _up_to_last_cut(before).match(text, start + 1, start + PART_CHARACTERS + 1)
    return found.end() - 1 if found else None


def _first_cut_after(text: str, place: int, before: str) -> int:
    found = _cut(before).search(text, place)
    return found.start() if found else len(text)
