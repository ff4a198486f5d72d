"""Markdown from templates: moe_core/reports/templates/*.md.j2, and how they write names, numbers and foreign text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from moe_core.program import program
from moe_core.words import count_of, fixed, p_value, percent, short_count


def render(template: str, **values: object) -> str:
    """The text of a template; a value that it names and nobody gave is an error."""
    return _environment().get_template(template).render(**values)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A table; all columns but the first `text_columns` are aligned right."""
    rule = [*("---" for _ in header[:text_columns]), *("---:" for _ in header[text_columns:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def escape(text: str) -> str:
    """A name from the user's data, so that it stays one cell of a Markdown table."""
    return " ".join(text.split()).translate({ord(c): f"\\{c}" for c in "\\|<>*_`[]&"})


def fenced(text: str) -> str:
    """Any text as a code block, whatever fences it holds."""
    longest = max((len(run) for run in "".join(c if c == "`" else " " for c in text).split()), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def figure(value: float | None, digits: int) -> str:
    """A number with `digits` decimals; "unknown" for what could not be measured."""
    return "unknown" if value is None else fixed(value, digits, thousands=True)


@cache
def _environment() -> Environment:
    # Markdown has no escaping that fits every place: templates name the filter, `escape` or `fenced`.
    environment = Environment(
        loader=PackageLoader("moe_core.reports"),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "escape_markdown": escape,
        "fenced": fenced,
        "figure": figure,
        "p_value": p_value,
        "percent": percent,
        "short_count": short_count,
    }
    environment.globals |= {"table": table, "count_of": count_of, "program": program}
    return environment
