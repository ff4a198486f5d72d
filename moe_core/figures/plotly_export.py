"""Plotly's figures as files: self-contained HTML (no network) and CSV; a picture of them would need a browser."""

from __future__ import annotations

import html
import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pandas as pd

from moe_core.errors import UsageError
from moe_core.figures.palette import DARK_PAGE, DARK_TEXT, LIGHT_PAGE, LIGHT_TEXT
from moe_core.figures.picture_files import csv_bytes

if TYPE_CHECKING:
    import plotly.graph_objects as go

PLOTLY_FORMATS = ("html", "csv")
PLOTLY_STYLE = (
    ".js-plotly-plot text { fill: currentColor !important; text-shadow: none !important; }\n"
    ".js-plotly-plot .hoverlayer text { fill: #ffffff !important; }\n"
)
"""Labels in the page's own text colour, in light and in dark; those on the dark hover box stay white."""
_HTML = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="UTF-8">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 14px sans-serif; margin: 16px; background: {light_page}; color: {light_text}; }}
@media (prefers-color-scheme: dark) {{ body {{ background: {dark_page}; color: {dark_text}; }} }}
{style}</style>
<script>{bundle}</script>
</head>
<body>
<h1 style="font-size: 18px">{title}</h1>
<p>{subtitle}</p>
<div id="figure"></div>
<script>{call}</script>
</body>
</html>
"""


def plotly_bytes(
    chart: go.Figure, format: str, *, frame: pd.DataFrame | None = None, title: str = "", subtitle: str = ""
) -> bytes:
    """The chart as a file in `format` (one of PLOTLY_FORMATS). Raises UsageError for another format, or for csv
    without `frame`."""
    if format not in PLOTLY_FORMATS:
        raise UsageError(
            f"{title or 'this figure'!r} cannot be written as {format!r}; expected one of {', '.join(PLOTLY_FORMATS)}"
        )
    if format == "csv":
        if frame is None:
            raise UsageError("this chart has no table of its own for csv; pass frame=")
        return csv_bytes(frame)
    page = _HTML.format(
        title=html.escape(title or "Moescope"),
        subtitle=html.escape(subtitle),
        style=PLOTLY_STYLE,
        bundle=plotly_bundle(),
        call=plotly_call(chart, "figure"),
        light_page=LIGHT_PAGE,
        light_text=LIGHT_TEXT,
        dark_page=DARK_PAGE,
        dark_text=DARK_TEXT,
    )
    return page.encode()


@lru_cache(maxsize=1)
def plotly_bundle() -> str:
    """Plotly's JavaScript, 4.7 MB."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def plotly_call(chart: go.Figure, element: str) -> str:
    """The JavaScript that draws the chart into the element of that id; safe inside a <script>."""
    tree: dict[str, Any] = json.loads(chart.to_json())
    tree["layout"].pop("template", None)  # the colours of the page apply
    # "<" never appears in the data's script: a label such as </script> must not end it.
    data, layout = (json.dumps(tree[part]).replace("<", "\\u003c") for part in ("data", "layout"))
    return f'Plotly.newPlot("{element}", {data}, {layout}, {{displaylogo: false, responsive: true}});'
