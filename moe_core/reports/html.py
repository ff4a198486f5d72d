"""HTML from templates: whatever is put into one is escaped, unless it was marked as markup by the code that made it."""

from __future__ import annotations

from functools import cache
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from moe_core.figures.picture_files import unbroken
from moe_core.program import program


def render(template: str, **values: object) -> str:
    """The text of a template; a value that it names and nobody gave is an error."""
    return _environment().get_template(template).render(**values)


def visible(text: str) -> str:
    """Characters that no document may hold (or that turn the direction of writing) as their codes."""
    return unbroken("".join(c if c.isprintable() or c in "\n\t" else f"⟨{ord(c):X}⟩" for c in text))


def cell(value: Any, digits: int) -> str:
    """One value of a table: floats with `digits` significant digits, nothing for what is unknown."""
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:#.{digits}g}" if 1e-4 <= abs(value) < 10 ** (digits - 1) else f"{value:,.4g}"
    return str(value)


def is_numeric(column: pd.Series[Any]) -> bool:
    """True for numbers and for yes and no: what is aligned right."""
    return pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column)


def _finalize(value: object) -> object:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("moe_core.reports"),
        undefined=StrictUndefined,
        autoescape=True,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = cell
    environment.globals["program"] = program
    environment.tests["numeric"] = is_numeric
    return environment
