"""A figure: a chart with its question, its answer and its numbers; and how it becomes a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import altair as alt
import pandas as pd

from moe_core.figures.picture_files import FORMATS, Chart, chart_bytes
from moe_core.figures.plotly_export import PLOTLY_FORMATS, plotly_bytes

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Figure:
    """A chart with the question it answers, the answer in one computed sentence, and its numbers as a table."""

    name: str
    """File name without suffix: lower-case letters, digits, underscores."""
    title: str
    question: str
    verdict: str
    chart: Chart | go.Figure
    """Altair, but for what Vega-Lite cannot draw (Sankey), which is Plotly."""
    frame: pd.DataFrame

    @property
    def formats(self) -> tuple[str, ...]:
        """The kinds of file it can be written as: Plotly's need a browser for pictures, so only html and csv."""
        return FORMATS if isinstance(self.chart, alt.TopLevelMixin) else PLOTLY_FORMATS


def slug(name: str) -> str:
    """A domain or measure as part of a figure's name."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in name.lower())[:40] or "text"


def figure_bytes(figure: Figure, format: str) -> bytes:
    """The figure as a file (see export.FORMATS), with its title and verdict above it; csv holds its table.

    Raises UsageError for a format that is not among figure.formats.
    """
    chart: Any = figure.chart
    draw = chart_bytes if isinstance(chart, alt.TopLevelMixin) else plotly_bytes
    return draw(chart, format, frame=figure.frame, title=figure.title, subtitle=figure.verdict)
