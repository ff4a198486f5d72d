"""Show a Figure: the chart, how to read it, and its downloads. And every term of the glossary, the same everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import altair as alt
import streamlit as st
from altair.utils import schemapi

from app import state
from app.components.page import plain
from moe_core.figures.expert_names_in_figures import with_names
from moe_core.figures.figure import Figure, figure_bytes
from moe_core.figures.maps import CELL
from moe_core.figures.palette import DARK_TEXT, LIGHT_TEXT
from moe_core.inference.named_experts import names_of
from moe_core.routing.measures.glossary import GLOSSARY

if TYPE_CHECKING:
    import plotly.graph_objects as go

# A chart is checked against Vega-Lite's schema when it is shown; Altair checks each of its parts as it is made besides,
# for people who write charts by hand.
schemapi.disable_debug_mode()

_FORMATS = {"PNG": "image/png", "SVG": "image/svg+xml", "CSV": "text/csv", "HTML": "text/html"}
_ABOUT = {"CSV": "Save the numbers behind this picture", "HTML": "Save this picture as a page that needs no network"}
_ALTAIR_FORMATS: tuple[str, ...] = ("PNG", "SVG", "CSV")
_PLOTLY_CONFIG = {"displayModeBar": False}  # its buttons zoom what needs no zoom
_PLOTLY_FORMATS: tuple[str, ...] = ("HTML", "CSV")


def show_figure(
    figure: Figure,
    *,
    key: str,
    terms: Sequence[str] = (),
    title: str | None = None,
    on_cell: Callable[[dict[str, Any]], None] | None = None,
    is_live: bool = False,
    named: bool = True,
    zooms: str | None = None,
) -> None:
    """Draw `figure` with its verdict as alternative text, an explanation of `terms`, and downloads.

    `key` is unique on the page and names the downloaded files. `title` replaces the figure's own; "" leaves it out.
    `on_cell` is called with the clicked cell of a map, {"layer": 2, "expert": 5}, before the page runs again, so that
    it may choose for widgets. A cell that is let go calls nothing.

    `is_live`: the figure is drawn again every moment. The page says its verdict elsewhere then: a chart whose
    alternative text changes is made anew, and flickers. `named`: it is of experts of the chosen run or file, whose
    names it shows. `zooms`: the chart's selection that moves its scales; named here it outlives new data.
    """
    if named and state.has_subject():
        figure = with_names(figure, names_of(state.subject())[0].by_expert)
    heading = figure.title if title is None else title
    if heading:
        st.markdown(f"#### {plain(heading)}")
    description = f"{figure.title}. {figure.question if is_live else figure.verdict}"
    formats = _ALTAIR_FORMATS
    if not isinstance(figure.chart, alt.TopLevelMixin):
        drawn = _on_this_page(figure.chart)
        st.plotly_chart(drawn, width="stretch", alt=description, key=f"{key}_chart", config=_PLOTLY_CONFIG)
        formats = _PLOTLY_FORMATS
    else:
        # Vega writes in black unless told; the page's own text colour is right in light and in dark.
        chart = figure.chart.configure_text(color="currentColor")
        selects: dict[str, Any] = {}
        if zooms is not None:
            selects = {"on_select": "rerun", "selection_mode": zooms}
        elif on_cell is not None:
            selects = {"on_select": partial(hand_on, f"{key}_chart", on_cell), "selection_mode": CELL}
        st.altair_chart(chart, width="stretch", alt=description, key=f"{key}_chart", **selects)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        if terms:
            explain(terms, key=f"{key}_explain")
        for label in formats:
            st.download_button(
                label,
                data=_maker(figure, label.lower()),  # drawn on click: a PNG takes longer than the page
                file_name=f"{key}.{label.lower()}",
                mime=_FORMATS[label],
                key=f"{key}_{label}",
                type="tertiary",
                icon=":material/download:",
                on_click="ignore",
                help=_ABOUT.get(label, f"Save this picture as {label}"),
            )


def explain(terms: Sequence[str], *, key: str) -> None:
    """A popover with each term in one line, its formula, what to compare with, and the source."""
    with st.popover("How to read this", icon=":material/help:", type="tertiary", key=key):
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


def _on_this_page(chart: go.Figure) -> go.Figure:
    """The chart with its text in the page's colour. Plotly puts a white halo round names, on a dark page too."""
    ink = DARK_TEXT if st.context.theme.type == "dark" else LIGHT_TEXT
    drawn = copy(chart).update_traces(textfont={"shadow": "none", "color": ink}, selector={"type": "sankey"})
    return drawn.update_annotations(font_color=ink)


def hand_on(key: str, on_cell: Callable[[dict[str, Any]], None]) -> None:
    """For the on_select of the map under `key`: call `on_cell` with the clicked cell; a cell that is let go calls
    nothing."""
    if cells := st.session_state[key].selection.get(CELL):
        on_cell(dict(cells[0]))


def _maker(figure: Figure, file_format: str) -> Callable[[], bytes]:
    return lambda: figure_bytes(figure, file_format)
