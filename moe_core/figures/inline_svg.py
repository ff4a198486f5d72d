"""A chart as SVG to put into a page: it takes the page's text colour, so that it reads in light, in dark and on paper.

No script is needed: what the dashboard says on hover is the <title> of each mark, which browsers show and read out.
"""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from moe_core.figures.picture_files import Chart, draw_spec, themed_spec

_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_INK = "currentColor"
_THEME: dict[str, Any] = {
    "font": "sans-serif",
    "background": None,
    "view": {"stroke": None},
    "axis": {
        "aria": False, "labelColor": _INK, "titleColor": _INK, "titleFontWeight": "normal", "labelFontSize": 11,
        "titleFontSize": 12, "gridColor": _INK, "gridOpacity": 0.12, "domainColor": _INK, "domainOpacity": 0.4,
        "tickColor": _INK, "tickOpacity": 0.4,
    },
    "legend": {"aria": False, "labelColor": _INK, "titleColor": _INK, "titleFontWeight": "normal", "titleLimit": 400},
    "text": {"color": _INK},
}  # fmt: skip


def inline_svg(chart: Chart, key: str, label: str) -> str:
    """The chart as an <svg> element. `key` (letters, digits) keeps its ids apart from those of other pictures in the
    page; `label` is its alternative text. Raises MoescopeError when it cannot be drawn."""
    spec = themed_spec(chart, _THEME)
    _describe(spec)
    root = ElementTree.fromstring(draw_spec(spec, "svg"))
    for element in root.iter():
        _own_ids(element, key)
        _title(element)
    width, height = root.attrib.pop("width"), root.attrib.pop("height")
    # A browser's letters may be wider than those the room was measured with: they are not cut.
    root.attrib |= {"role": "img", "aria-label": label, "style": f"width: {width}px; overflow: visible"}
    root.attrib.setdefault("viewBox", f"0 0 {width} {height}")
    ElementTree.register_namespace("", _SVG.strip("{}"))
    return ElementTree.tostring(root, encoding="unicode")


def _describe(spec: dict[str, Any]) -> None:
    """Give every mark its tooltip's sentence as description, and marks without one none."""
    for layer in spec.get("layer", [spec]):
        mark, tooltip = layer.get("mark"), layer.get("encoding", {}).get("tooltip")
        field = tooltip.get("field") if isinstance(tooltip, dict) else None
        if field:
            layer["encoding"]["description"] = {"field": field, "type": "nominal"}
        elif isinstance(mark, dict):
            mark["aria"] = False


def _own_ids(element: ElementTree.Element, key: str) -> None:
    for name, value in element.attrib.items():
        if name == "id":
            element.set(name, f"{key}-{value}")
        elif value.startswith("url(#"):
            element.set(name, f"url(#{key}-{value[5:]}")
        elif name in ("href", _XLINK) and value.startswith("#"):
            element.set(name, f"#{key}-{value[1:]}")


def _title(element: ElementTree.Element) -> None:
    """Vega's text for screen readers becomes a <title>. A line gets none: its text is that of its first point only."""
    sentence, kind = element.attrib.pop("aria-label", ""), element.attrib.pop("aria-roledescription", "")
    for name in ("role", "aria-hidden"):
        element.attrib.pop(name, None)
    if sentence and kind != "line mark" and element.tag != f"{_SVG}g":
        title = ElementTree.Element(f"{_SVG}title")
        title.text = sentence
        element.insert(0, title)
