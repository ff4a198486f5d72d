"""Figures as files, named after what they show: for every command that writes some."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_core.cli.options import Parser
from moe_core.cli.output import write_bytes
from moe_core.progress import Progress

if TYPE_CHECKING:
    from moe_core.figures.figure import Figure

PLOT_FORMATS = ("png", "svg", "pdf", "html", "csv")


def add_format(parser: Parser) -> None:
    """--format"""
    parser.add_argument(
        "--format", choices=PLOT_FORMATS, action="append", help="repeatable (default png); csv holds the numbers"
    )


def chosen_formats(given: Sequence[str] | None) -> list[str]:
    """Each once, in the order given."""
    return list(dict.fromkeys(given or ["png"]))


def write_figures(
    figures: Sequence[Figure], folder: Path, formats: Sequence[str], progress: Progress
) -> dict[str, list[str]]:
    """Write each in every format it can have; the names of its files, by its own name."""
    from moe_core.figures.figure import figure_bytes

    folder.mkdir(parents=True, exist_ok=True)
    written: dict[str, list[str]] = {}
    for number, figure in enumerate(figures, start=1):
        # A figure that cannot be a picture is written as what it can be, rather than left out.
        chosen = [suffix for suffix in formats if suffix in figure.formats] or [figure.formats[0]]
        written[figure.name] = [f"{figure.name}.{suffix}" for suffix in chosen]
        for suffix, name in zip(chosen, written[figure.name], strict=True):
            write_bytes(folder / name, figure_bytes(figure, suffix))
        progress("drawing", number, len(figures))
    return written


def figure_records(figures: Sequence[Figure], written: dict[str, list[str]]) -> list[dict[str, Any]]:
    """The same for --json."""
    return [
        {
            "name": figure.name,
            "title": figure.title,
            "question": figure.question,
            "verdict": figure.verdict,
            "files": written[figure.name],
        }
        for figure in figures
    ]
