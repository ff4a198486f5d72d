"""Tables and text of Markdown reports."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> list[str]:
    """The lines of a table; all columns but the first `text_columns` are aligned right."""
    rule = [*("---" for _ in header[:text_columns]), *("---:" for _ in header[text_columns:])]
    return [f"| {' | '.join(row)} |" for row in (header, rule, *rows)]


def escape(text: str) -> str:
    """A name from the user's data, so that it stays one cell of a Markdown table."""
    return " ".join(text.split()).translate({ord(c): f"\\{c}" for c in "\\|<>*_`[]&"})


def fenced(text: str) -> list[str]:
    """Any text as a code block, whatever fences it holds."""
    longest = max((len(run) for run in "".join(c if c == "`" else " " for c in text).split()), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", *text.split("\n"), fence]
