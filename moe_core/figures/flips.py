"""Figures of two routings of the same tokens: how far they agree by layer, and how close the flipped choices were."""

from __future__ import annotations

import math
from typing import Any

import altair as alt
import pandas as pd

from moe_core.figures.figure import Figure
from moe_core.figures.labels import rows
from moe_core.figures.layout import MAX_NUMBERED_BARS, ROW_AXIS, bars_height, layered, percent_axis
from moe_core.figures.palette import BAR, HEAT
from moe_core.routing.measures.agreement import Agreement, agreement_verdict, shared_tenths
from moe_core.routing.measures.flip_margins import FlipMargins, margins_verdict
from moe_core.words import number, percent

LEAST_MARGIN = 1e-4
"""Smaller ones are drawn here: ties are 0, which a logarithmic scale has no place for."""
_AXES = {
    "boundary": "router's margin of the last expert chosen over the first left out",
    "last weight": "weight of the last expert chosen",
    "none": "margin",
}
_LEAST_SCALE = 0.02
"""Of a scale of agreement: less than two points of difference are not drawn as if they were many."""


def agreement_figure(found: Agreement) -> Figure:
    """Which share of the choices is identical, layer by layer?"""
    frame = pd.DataFrame(
        [
            {
                "layer": one.layer,
                "identical": one.all_choices.value,
                "low": one.all_choices.low,
                "high": one.all_choices.high,
                "chance": one.all_choices.chance,
                "first": one.first_choice.value,
                "first_low": one.first_choice.low,
                "first_high": one.first_choice.high,
                "first_chance": one.first_choice.chance,
            }
            for one in found.layers
        ]
    )
    data = frame.assign(
        sentence=[_agreement_sentence(row) for row in rows(frame)],
        label=[shared_tenths(value) for value in frame["identical"]],
        # Its number stands beside the filled mark, on the side where the open one is not.
        before=frame["first"] >= frame["identical"],
        begin=frame[["identical", "low"]].min(axis=1),
        end=frame[["identical", "high"]].max(axis=1),
    )
    base = alt.Chart(data).encode(
        y=alt.Y("layer:O", title="MoE layer", axis=ROW_AXIS), tooltip=alt.Tooltip("sentence:N")
    )
    least = frame[["identical", "low", "first", "first_low"]].min().min()
    width = max(1 - float(least), _LEAST_SCALE) if least == least else 1.0
    # Points, not bars, as the scale need not begin at 0; on either side there is room for the numbers.
    after = frame.loc[~data["before"], ["identical", "high"]].max().max()
    room = 0.04 if not after > 1 - 0.25 * width else 0.3
    start, end = max(1 - 1.3 * width, 0.0), 1 + room * width
    scale, axis = alt.Scale(domain=[start, end], nice=False, zero=False), percent_axis(1 - start)
    title = "● identical choices  ○ identical first choices"

    def x_of(name: str) -> alt.X:  # each layer with the same scale: one without would bring 0 into it
        return alt.X(f"{name}:Q", title=title, axis=axis, scale=scale)

    layers = [
        base.mark_rule(strokeWidth=3, color=BAR, strokeCap="round", opacity=0.6).encode(
            x=x_of("low"), x2=alt.X2("high:Q")
        ),
        base.mark_point(filled=True, size=80, color=BAR, opacity=1).encode(x=x_of("identical")),
        base.mark_point(filled=False, size=60, color=HEAT, strokeWidth=2, opacity=1).encode(x=x_of("first")),
    ]
    if len(data) <= MAX_NUMBERED_BARS:
        left, right = (base.transform_filter(alt.datum.before == where) for where in (True, False))
        layers += [
            left.mark_text(align="right", dx=-9, fontSize=11).encode(x=x_of("begin"), text=alt.Text("label:N")),
            right.mark_text(align="left", dx=9, fontSize=11).encode(x=x_of("end"), text=alt.Text("label:N")),
        ]
    return Figure(
        "agreement", "Agreement by layer", "Which share of the choices is identical?",
        agreement_verdict(found), layered(layers, data, bars_height(len(data))), frame,
    )  # fmt: skip


def margins_figure(found: FlipMargins) -> Figure:
    """Had the choices that differ been close? Medians at flips and elsewhere, with the middle half of each."""
    frame = pd.DataFrame(
        [
            {
                "layer": one.layer,
                "flips": one.flips,
                "at_flips": one.at_flips.median,
                "at_flips_lower": one.at_flips.lower,
                "at_flips_upper": one.at_flips.upper,
                "elsewhere": one.elsewhere.median,
                "elsewhere_lower": one.elsewhere.lower,
                "elsewhere_upper": one.elsewhere.upper,
                "closer": one.closer.value,
                "low": one.closer.low,
                "high": one.closer.high,
            }
            for one in found.experts.layers
        ]
    )
    drawn = [f"{kind}{end}" for kind in ("at_flips", "elsewhere") for end in ("", "_lower", "_upper")]
    data = frame.assign(**{name: frame[name].clip(lower=LEAST_MARGIN) for name in drawn}).assign(
        sentence=[_margin_sentence(row) for row in rows(frame)]
    )
    least, most = (float(value) for value in (data[drawn].min().min(), data[drawn].max().max()))
    # Margins have one scale, so that pictures compare; weights of a last choice would crowd at its end.
    has_margins = found.experts.basis == "boundary" or least != least
    begin = LEAST_MARGIN if has_margins else max(LEAST_MARGIN, 10.0 ** math.floor(math.log10(least)))
    scale = alt.Scale(type="log", domain=[begin, most * 1.3 if most == most else 1.0], nice=False)
    base = alt.Chart(data).encode(
        y=alt.Y("layer:O", title="MoE layer", axis=ROW_AXIS), tooltip=alt.Tooltip("sentence:N")
    )
    title = f"{_AXES[found.experts.basis]}: ● at flips  ○ elsewhere; line: middle half"
    x = alt.X(
        "at_flips_lower:Q",
        title=title,
        scale=scale,
        axis=alt.Axis(format="~g", values=_ticks(begin, most)),
    )
    # One above the other, so that neither hides what lies behind it.
    layers = [
        base.mark_rule(color=HEAT, yOffset=-4, strokeWidth=3, strokeCap="round", opacity=0.5).encode(
            x=x, x2=alt.X2("at_flips_upper:Q")
        ),
        base.mark_rule(color=BAR, yOffset=4, strokeWidth=3, strokeCap="round", opacity=0.5).encode(
            x=alt.X("elsewhere_lower:Q"), x2=alt.X2("elsewhere_upper:Q")
        ),
        base.mark_point(filled=True, size=80, color=HEAT, opacity=1, yOffset=-4).encode(x=alt.X("at_flips:Q")),
        base.mark_point(filled=False, size=70, color=BAR, strokeWidth=2, opacity=1, yOffset=4).encode(
            x=alt.X("elsewhere:Q")
        ),
    ]
    return Figure(
        "flip_margins", "How close the flipped choices were", "Had the choices that differ been close?",
        margins_verdict(found), layered(layers, data, bars_height(len(data))), frame,
    )  # fmt: skip


def _ticks(begin: float, most: float) -> list[float]:
    """Powers of ten, with 2 and 5 times each where the scale has few of them."""
    powers = [10.0**exponent for exponent in range(-4, 1) if 10.0**exponent >= begin * 0.99]
    return powers if most > 20 * begin else [part * power for power in powers for part in (1, 2, 5)]


def _agreement_sentence(row: Any) -> str:
    if row.identical != row.identical:
        return f"Layer {row.layer}: nothing was chosen."
    interval = f" (95 % interval {shared_tenths(row.low)} to {shared_tenths(row.high)})" if row.low == row.low else ""
    return (
        f"Layer {row.layer}: {shared_tenths(row.identical)} of the choices are identical{interval}, "
        f"{percent(row.chance)} by chance; of the first choices {shared_tenths(row.first)}, "
        f"{percent(row.first_chance)} by chance."
    )


def _margin_sentence(row: Any) -> str:
    if not row.flips:
        return f"Layer {row.layer}: no token goes to other experts."
    if row.at_flips != row.at_flips:
        return f"Layer {row.layer}: {row.flips:,} flips, whose margin is not known."
    closer = f"; closer in {percent(row.closer)} of pairs, 50 % by chance" if row.closer == row.closer else ""
    return (
        f"Layer {row.layer}: median {number(row.at_flips)} at {row.flips:,} flips, {number(row.elsewhere)} "
        f"elsewhere{closer}."
    )
