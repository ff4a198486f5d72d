"""Show a Figure: the chart, how to read it, and its downloads. And every term of the glossary, the same everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import streamlit as st

from app.components.page import plain
from moe_core.routing.glossary import GLOSSARY

if TYPE_CHECKING:
    from moe_core.figures.run_figures import Figure

_FORMATS = {"PNG": "image/png", "SVG": "image/svg+xml", "CSV": "text/csv"}


def show_figure(figure: Figure, *, key: str, terms: Sequence[str] = (), title: str | None = None) -> None:
    """Draw `figure` with its verdict as alternative text, an explanation of `terms`, and downloads.

    `key` is unique on the page and names the downloaded files. `title` replaces the figure's own; "" leaves it out.
    """
    heading = figure.title if title is None else title
    if heading:
        st.markdown(f"#### {plain(heading)}")
    st.altair_chart(
        # Vega writes in black unless told; the page's own text colour is right in light and in dark.
        figure.chart.configure_text(color="currentColor"),
        width="stretch",
        alt=f"{figure.title}. {figure.verdict}",
        key=f"{key}_chart",
    )
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        if terms:
            explain(terms, key=f"{key}_explain")
        for label, mime in _FORMATS.items():
            st.download_button(
                label,
                data=_maker(figure, label.lower()),  # drawn on click: a PNG takes longer than the page
                file_name=f"{key}.{label.lower()}",
                mime=mime,
                key=f"{key}_{label}",
                type="tertiary",
                icon=":material/download:",
                on_click="ignore",
                help="Save the numbers behind this picture" if label == "CSV" else f"Save this picture as {label}",
            )


def explain(terms: Sequence[str], *, key: str, label: str = "How to read this") -> None:
    """A popover with each term in one line, its formula, what to compare with, and the source."""
    with st.popover(label, icon=":material/help:", type="tertiary", key=key):
        for name in terms:
            term = GLOSSARY[name]
            st.markdown(f"**{plain(term.name[:1].upper() + term.name[1:])}.** {plain(term.one_line)}")
            notes = [
                f"`{term.formula}`" if term.formula else "",
                plain(f"Compare with: {term.chance}.") if term.chance else "",
                plain(f"Source: {term.source}.") if term.source else "",
            ]
            if any(notes):
                st.caption("  \n".join(note for note in notes if note))


def term_help(name: str) -> str:
    """The glossary's line on `name`, for a tooltip."""
    return plain(GLOSSARY[name].help)


def _maker(figure: Figure, file_format: str) -> Callable[[], bytes]:
    def make() -> bytes:
        from moe_core.figures.run_figures import figure_bytes

        return figure_bytes(figure, file_format)

    return make
