"""Heat maps: lift around 1, change of loss around 0, shares from 0. One scale each, wherever it is drawn.

All three take the colours of palette.LIFT_COLOURS: purple = less, see-through = as by chance or nothing, orange = more.
Cells carry an Altair selection named CELL with the fields layer and expert where the table has them, so that a page
can let its user click an expert.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from moe_core.figures.layout import AXIS_ROOM, layered, map_height
from moe_core.figures.palette import (
    LIFT_COLOURS,
    LIFT_LIMIT,
    LIFT_STOPS,
    LIFT_WHITE_ABOVE,
    LIFT_WHITE_BELOW,
    NEUTRAL,
    TOKEN_STRENGTH,
)
from moe_core.words import fixed, signed_two_digits, two_digits

CELL = "cell"
"""Name of the selection of clickable maps."""
_CELL_FIELDS = ("layer", "expert")
_SMALLEST_CELL = 16
"""Points: a number in a narrower or lower cell cannot be read."""
_CHARACTER, _MARGIN = 6.2, 5
"""Points that one more character of a number takes, and the room between two numbers."""
_WIDEST = 1600
"""Points: no page is wider, so a map that needs more for its numbers is sent without them."""
LEGEND_ROOM = 56
"""Height of the scale above a map: beside it, it would take half the width of a narrow page."""
_SMALLEST_LIMIT = 0.001
_NO_KIND, _FAINTEST = 0.06, 0.2
"""Opacity of a cell without a kind, and of one of strength 1."""


def lift_map(frame: pd.DataFrame, *, x: alt.X, y: alt.Y, title: str = "times its even share") -> alt.LayerChart:
    """Heat map of `frame["lift"]` around 1, one cell a row; `frame["sentence"]` is its tooltip.

    Where `frame` has a true `uncertain` the cell is faded. Cells carry their number wherever it fits, at whatever
    width the map is drawn.
    """
    lift = frame["lift"].astype(float)
    shown = lift.clip(1 / LIFT_LIMIT, LIFT_LIMIT)
    colour = alt.Color("shown:Q", title=title, scale=lift_scale(), legend=_lift_legend())
    position = shown.map(math.log2) / math.log2(LIFT_LIMIT)
    return _heat_map(
        frame.assign(shown=shown.round(4), label=[_ratio(value) for value in lift]), position, colour, x=x, y=y
    )


def nats_map(frame: pd.DataFrame, *, x: alt.X, y: alt.Y, limit: float, title: str) -> alt.LayerChart:
    """Heat map of `frame["nats"]`, a change of loss around 0 (see nats_limit for `limit`); tooltips and fading as in
    lift_map.

    Colours go with the square root of the change, so that one layer on which all depends does not hide the others.
    """
    nats = frame["nats"].astype(float)
    shown = nats.clip(-limit, limit)
    stops = [-limit, -limit / 4, 0, limit / 4, limit]
    scale = alt.Scale(type="sqrt", domain=stops, range=list(LIFT_COLOURS), clamp=True)
    legend = _legend(stops, [f"≤ −{limit:g}", f"−{limit / 4:g}", "0", f"+{limit / 4:g}", f"≥ +{limit:g}"])
    colour = alt.Color("shown:Q", title=title, scale=scale, legend=legend)
    position: pd.Series[float] = (shown.abs() / limit).pow(0.5) * np.sign(shown)
    return _heat_map(frame.assign(shown=shown, label=[signed_two_digits(v) for v in nats]), position, colour, x=x, y=y)


def share_map(frame: pd.DataFrame, *, x: alt.X, y: alt.Y, title: str, limit: float = 1.0) -> alt.LayerChart:
    """Heat map of `frame["value"]` from 0 to `limit`; tooltips and fading as in lift_map."""
    value = frame["value"].astype(float)
    shown = value.clip(0.0, limit)
    stops = [0.0, limit / 2, limit]
    scale = alt.Scale(domain=stops, range=list(LIFT_COLOURS)[2:], clamp=True)
    colour = alt.Color("shown:Q", title=title, scale=scale, legend=_legend(stops, [f"{stop:g}" for stop in stops]))
    return _heat_map(frame.assign(shown=shown, label=[two_digits(v) for v in value]), shown / limit, colour, x=x, y=y)


def kinds_map(frame: pd.DataFrame, *, x: alt.X, y: alt.Y, colours: dict[str, str], none: str) -> alt.LayerChart:
    """Heat map of `frame["kind"]` by colour, the stronger, the larger `frame["strength"]`, a lift; tooltips as in
    lift_map. The kind `none` is drawn in grey."""
    logs = frame["strength"].astype(float).clip(1.0, LIFT_LIMIT).map(math.log2) / math.log2(LIFT_LIMIT)
    shown = _FAINTEST + (TOKEN_STRENGTH - _FAINTEST) * logs
    names = [*colours, none]
    legend = alt.Legend(
        orient="top", direction="horizontal", columns=alt.ExprRef("width < 480 ? 2 : 0"), symbolType="square",
        symbolOpacity=TOKEN_STRENGTH, symbolStrokeWidth=0, symbolSize=140, labelLimit=150, titleLimit=400,
        title=f"stronger: more times its even share (1 to ≥ {LIFT_LIMIT:g})",
    )  # fmt: skip
    scale = alt.Scale(domain=names, range=[*colours.values(), NEUTRAL])
    colour = alt.Color("kind:N", scale=scale, legend=legend)
    data = frame.assign(shown=shown.fillna(_NO_KIND).round(2), label=[_ratio(value) for value in frame["strength"]])
    position = pd.Series(0.0, index=frame.index)  # no cell is so dark that it needs white figures
    return _heat_map(data, position, colour, x=x, y=y, opacity=alt.Opacity("shown:Q", scale=None))


def lift_scale() -> alt.Scale:
    """The one colour scale of all lift maps: logarithmic, see-through at 1, clamped at LIFT_LIMIT."""
    return alt.Scale(type="log", base=2, domain=list(LIFT_STOPS), range=list(LIFT_COLOURS), clamp=True)


def nats_limit(effects: pd.Series[float]) -> float:
    """End of the scale of changes of loss: the smallest 1, 2 or 5 times a power of ten, at least 0.001 nats, that
    holds 99 % of |effects|.

    Give it the effects of all layers, experts and domains, so that maps that are compared share a scale.
    """
    size = effects.abs().dropna()
    most = float(size.quantile(0.99)) if len(size) else 0.0
    limit = _SMALLEST_LIMIT
    for exponent in range(-3, 4):
        for step in (1, 2, 5):
            limit = float(f"{step}e{exponent}")
            if most <= limit:
                return limit
    return limit


def _heat_map(
    frame: pd.DataFrame,
    position: pd.Series[float],
    colour: alt.Color,
    *,
    x: alt.X,
    y: alt.Y,
    opacity: alt.Opacity | None = None,
) -> alt.LayerChart:
    """`position` is where each cell stands on the colour scale, -1..1: the ends are dark and carry white text.

    Uncertain cells are faded, unless `opacity` says otherwise.
    """
    uncertain = frame["uncertain"].astype(bool) if "uncertain" in frame else pd.Series(False, index=frame.index)
    # The thresholds of the palette are log2 lifts, whose scale ends at 2.
    plain = position.between(LIFT_WHITE_BELOW / 2, LIFT_WHITE_ABOVE / 2)
    height = map_height(_distinct(frame, y))
    longest = int(frame["label"].str.len().max()) if len(frame) else 0
    wide = _distinct(frame, x) * max(longest * _CHARACTER + _MARGIN, _SMALLEST_CELL)
    high = _distinct(frame, y) * _SMALLEST_CELL
    has_numbers = 0 < wide <= _WIDEST and high <= height - AXIS_ROOM
    data = frame.assign(uncertain=uncertain)
    # What is not written does not travel: thousands of cells do.
    data = data.assign(on_dark=~plain & ~uncertain & position.notna()) if has_numbers else data.drop(columns="label")
    base = alt.Chart(data).encode(x=x, y=y)
    # Lines between cells of a few points would be all that is seen.
    lines = alt.ExprRef(f"width < {8 * _distinct(frame, x)} ? 0 : 1")
    cells = base.mark_rect(stroke=NEUTRAL, strokeOpacity=0.25, strokeWidth=lines).encode(
        color=colour,
        opacity=alt.condition("datum.uncertain", alt.value(0.3), alt.value(1.0)) if opacity is None else opacity,
        tooltip=alt.Tooltip("sentence:N"),
    )
    fields = [field for field in _CELL_FIELDS if field in data]
    if fields:
        cells = cells.add_params(alt.selection_point(name=CELL, fields=fields))
    layers: list[alt.Chart] = [cells]
    if has_numbers:
        # One layer of text in the theme's colour, one in white on the darkest cells: both pages stay readable.
        # Vega knows how wide the plot has become: numbers that would run into each other are left out.
        fits = alt.condition(f"width >= {wide:.0f} && height >= {high}", "label:N", alt.value(""))
        text = base.mark_text(fontSize=11, tooltip=None).encode(text=fits)
        faded = text.transform_filter("!datum.on_dark").encode(
            opacity=alt.condition("datum.uncertain", alt.value(0.55), alt.value(1.0))
        )
        layers += [faded, text.transform_filter("datum.on_dark").encode(color=alt.ColorValue("#ffffff"))]
    return layered(layers, data, height + LEGEND_ROOM)


def _ratio(lift: float) -> str:
    if lift != lift:  # NaN
        return ""
    if 0 < lift < 0.01:
        return "<0.01"
    return fixed(lift, 2) if 0 < lift < 0.995 else two_digits(lift)


def _distinct(frame: pd.DataFrame, channel: alt.X | alt.Y) -> int:
    return int(frame[str(channel["shorthand"]).split(":")[0]].nunique())


def _lift_legend() -> alt.Legend:
    names = [f"≤ {LIFT_STOPS[0]:g}", *(f"{stop:g}" for stop in LIFT_STOPS[1:-1]), f"≥ {LIFT_STOPS[-1]:g}"]
    return _legend(LIFT_STOPS, names)


def _legend(values: Sequence[float], names: Sequence[str]) -> alt.Legend:
    chosen = " : ".join(f"datum.value <= {value} ? '{name}'" for value, name in zip(values, names, strict=True))
    return alt.Legend(
        values=list(values),
        labelExpr=f"{chosen} : ''",
        orient="top",
        direction="horizontal",
        gradientLength=alt.ExprRef("clamp(width - 20, 100, 200)"),
        gradientThickness=10,
        titleLimit=300,
        gradientStrokeColor=NEUTRAL,
    )
