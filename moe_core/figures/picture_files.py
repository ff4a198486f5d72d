"""Figures as files: PNG, SVG and PDF by vl-convert (no browser), self-contained HTML (no network), CSV of the numbers.

Charts carry no theme of their own, so that the dashboard's applies; a file gets the light one on white.
"""

from __future__ import annotations

import json
import re
import textwrap
from functools import lru_cache
from typing import Any

import altair as alt
import pandas as pd

from moe_core.errors import MoescopeError, UsageError
from moe_core.figures.palette import LIGHT_PAGE, LIGHT_TEXT

FORMATS = ("png", "svg", "pdf", "html", "csv")
PNG_SCALE = 2.0
"""Pixels per unit of width."""
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
_SUBTITLE_CHARACTERS = 100
_TITLE_ROOM, _LINE_ROOM = 40, 16
_GRID = "#e3e7ec"
_EXPORT_CONFIG: dict[str, Any] = {
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": LIGHT_TEXT,
        "titleColor": LIGHT_TEXT,
        "titleFontWeight": "normal",
        "labelFontSize": 11,
        "titleFontSize": 12,
        "gridColor": _GRID,
        "domainColor": "#9aa4b0",
        "tickColor": "#9aa4b0",
    },
    "legend": {"labelColor": LIGHT_TEXT, "titleColor": LIGHT_TEXT, "titleFontWeight": "normal", "titleLimit": 400},
    "title": {"color": LIGHT_TEXT, "subtitleColor": "#4b5663", "anchor": "start", "fontSize": 15,
              "subtitleFontSize": 12, "subtitlePadding": 6, "offset": 14},
    "text": {"color": LIGHT_TEXT},
}  # fmt: skip
_HTML = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="UTF-8">
<title>{title}</title>
<script>{bundle}</script>
</head>
<body>
<div id="figure"></div>
<script>
vegaEmbed("#figure", {spec}, {{mode: "vega-lite", renderer: "svg",
  actions: {{export: true, source: false, compiled: false, editor: false}}}}).catch(console.error);
</script>
</body>
</html>
"""

Chart = alt.Chart | alt.LayerChart | alt.HConcatChart | alt.VConcatChart | alt.ConcatChart | alt.FacetChart


def chart_bytes(
    chart: Chart, format: str, *, frame: pd.DataFrame | None = None, title: str = "", subtitle: str = ""
) -> bytes:
    """The chart as a file in `format` (one of FORMATS).

    csv holds `frame`, or else the chart's own data. Raises UsageError for another format, MoescopeError when the
    chart cannot be drawn.
    """
    if format not in FORMATS:
        raise UsageError(f"unknown format {format!r}; expected one of {', '.join(FORMATS)}")
    if format == "csv":
        data = chart.data if frame is None else frame
        if not isinstance(data, pd.DataFrame):
            raise UsageError("this chart has no table of its own for csv; pass frame=")
        return csv_bytes(data)
    spec = _light_spec(chart, title, subtitle)
    if format == "html":
        return _html(spec, title).encode()
    return draw_spec(spec, format)


def csv_bytes(frame: pd.DataFrame) -> bytes:
    """The table as UTF-8 CSV. Text cells (and column names) that a spreadsheet would run as a formula get a leading
    apostrophe; numbers stay numbers."""
    safe = frame.copy()
    for column in safe.columns:
        if not (pd.api.types.is_numeric_dtype(safe[column]) or pd.api.types.is_bool_dtype(safe[column])):
            safe[column] = safe[column].map(_harmless_cell)
    safe.columns = [_harmless_cell(str(column)) for column in safe.columns]
    text: str = safe.to_csv(index=False, lineterminator="\n")
    return text.encode()


def _harmless_cell(cell: object) -> object:
    return "'" + cell if isinstance(cell, str) and cell.startswith(_FORMULA_STARTS) else cell


def themed_spec(chart: Chart, theme: dict[str, Any]) -> dict[str, Any]:
    """The chart's Vega-Lite specification with `theme` as its configuration, its own where it has one."""
    # Altair refuses more than 5,000 rows unless told; figures aggregate before they come here.
    with alt.data_transformers.enable("default", max_rows=None):
        spec: dict[str, Any] = chart.to_dict()
    own = spec.get("config", {})
    spec["config"] = {**theme, **{key: own[key] for key in own if key not in ("view", "background")}}
    return spec


def _light_spec(chart: Chart, title: str, subtitle: str) -> dict[str, Any]:
    spec = themed_spec(chart, _EXPORT_CONFIG)
    spec["background"] = LIGHT_PAGE
    spec["padding"] = 16
    if title:
        lines = textwrap.wrap(unbroken(subtitle), _SUBTITLE_CHARACTERS)
        spec["title"] = {"text": title, **({"subtitle": lines} if lines else {})}
        if isinstance(spec.get("height"), int | float):
            spec["height"] += _TITLE_ROOM + _LINE_ROOM * len(lines)  # our charts' height holds all there is
    return spec


def unbroken(text: str) -> str:
    """`text` with spaces that do not break a line within "31 %" and "p < 0.01"."""
    return re.sub(r" (?=%)|(?<=\bp) (?=[<=])|(?<=\bp[ \u00a0][<=]) ", "\u00a0", text)


def draw_spec(spec: dict[str, Any], format: str) -> bytes:
    """A Vega-Lite specification drawn as png, svg or pdf. Raises MoescopeError when it cannot be."""
    import vl_convert

    try:
        if format == "png":
            return bytes(vl_convert.vegalite_to_png(spec, scale=PNG_SCALE))
        if format == "pdf":
            return bytes(vl_convert.vegalite_to_pdf(spec))
        return str(vl_convert.vegalite_to_svg(spec)).encode()
    except ValueError as error:
        summary = " ".join(str(error).split())[:200]
        raise MoescopeError(f"the figure cannot be drawn as {format}: {summary}") from None


def _html(spec: dict[str, Any], title: str) -> str:
    import html

    # "<" never appears in the data's script: a token such as </script> must not end it.
    safe = json.dumps(spec).replace("<", "\\u003c")
    return _HTML.format(title=html.escape(title or "Moescope"), bundle=_vega(), spec=safe)


@lru_cache(maxsize=1)
def _vega() -> str:
    """Vega's JavaScript, 0.9 MB; vl-convert takes seconds to put it together, so once a process."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
