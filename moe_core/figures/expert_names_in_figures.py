"""Figures and tables with the names that people gave to experts: "expert 3 · currency amounts"."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import altair as alt
import pandas as pd

from moe_core.figures.figure import Figure
from moe_core.figures.labels import rows

if TYPE_CHECKING:
    import plotly.graph_objects as go

Names = Mapping[tuple[int, int], str]
"""Names by (layer, expert)."""
MOST_IN_LABEL = 24
"""Characters of a name beside a node: more would lie on its neighbours."""
_PAIRS = (("layer", "expert", "name"), ("next_layer", "next_expert", "next_name"))
_NODE = re.compile(r"^(?P<head>Layer (?P<layer>\d+), expert (?P<expert>\d+))(?P<tail>)")
_END = re.compile(r"(?P<head>[Ee]xpert (?P<expert>\d+))(?P<tail> in layer (?P<layer>\d+))")
"""How a Sankey says its nodes and the ends of its links."""


def with_names(figure: Figure, names: Names) -> Figure:
    """The figure with these names in its table, beside the experts, and in its tooltips; of a Sankey, at its nodes too.

    Names come from outside: Altair takes them as text, and for Plotly, which reads tags in labels, they are escaped.
    """
    if not names:
        return figure
    chart: Any = figure.chart
    named = _named_chart(chart, names) if isinstance(chart, alt.TopLevelMixin) else _named_sankey(chart, names)
    return replace(figure, chart=named, frame=named_table(figure.frame, names))


def named_table(frame: pd.DataFrame, names: Names) -> pd.DataFrame:
    """The table with a column "name" behind its experts; as it is where it has none, or none of them has a name."""
    for layer, expert, column in _PAIRS:
        if layer in frame and expert in frame and column not in frame:
            given = [names.get(place, "") for place in zip(frame[layer], frame[expert], strict=True)]
            if any(given):
                frame = frame.copy()
                frame.insert(int(frame.columns.get_loc(expert)) + 1, column, given)  # type: ignore[arg-type]
    return frame


def _named_chart(chart: Any, names: Names) -> Any:
    """The chart with names in the sentences of its tooltips, each of which is of one expert of a layer."""
    changed = chart
    data = getattr(chart, "data", alt.Undefined)
    if isinstance(data, pd.DataFrame) and {"layer", "expert", "sentence"} <= set(data):
        said = [_named_sentence(row, names) for row in rows(data)]
        changed = chart.copy(deep=False)
        changed.data = data.assign(sentence=said)
    for part in ("layer", "hconcat", "vconcat"):
        inner = getattr(chart, part, alt.Undefined)
        if isinstance(inner, list):
            changed = changed if changed is not chart else chart.copy(deep=False)
            setattr(changed, part, [_named_chart(one, names) for one in inner])
    return changed


def _named_sentence(row: Any, names: Names) -> str:
    name = names.get((row.layer, row.expert))
    sentence = str(row.sentence)
    if not name:
        return sentence
    return re.sub(rf"([Ee]xpert {row.expert})\b", lambda found: f"{found[1]} · {name}", sentence, count=1)


def _named_sankey(chart: go.Figure, names: Names) -> go.Figure:
    """The streams with names at their nodes and in what is said of nodes and links."""
    import plotly.graph_objects as go

    named = go.Figure(chart)  # a copy
    for trace in named.data:
        if trace.type == "sankey":
            nodes = list(trace.node.customdata)
            trace.node.label = [
                _named_label(label, said, names) for label, said in zip(trace.node.label, nodes, strict=True)
            ]
            trace.node.customdata = [_renamed(said, _NODE, names) for said in nodes]
            trace.link.customdata = [_renamed(said, _END, names) for said in trace.link.customdata]
    return named


def _renamed(said: str, place: re.Pattern[str], names: Names) -> str:
    return place.sub(lambda found: _with_name(found, names), said)


def _named_label(label: str, said: str, names: Names) -> str:
    found = _NODE.match(said)
    name = names.get((int(found["layer"]), int(found["expert"])), "") if found else ""
    short = name if len(name) <= MOST_IN_LABEL else f"{name[: MOST_IN_LABEL - 1]}…"
    return f"{label} · {html.escape(short)}" if short else label


def _with_name(found: re.Match[str], names: Names) -> str:
    name = names.get((int(found["layer"]), int(found["expert"])))
    return f"{found['head']} · {html.escape(name)}{found['tail']}" if name else found[0]
