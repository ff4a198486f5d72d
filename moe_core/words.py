"""Numbers and lists for people: what every sentence is made of."""

from __future__ import annotations

import math

import pandas as pd

_LAYERS_NAMED = 4


def number(value: float) -> str:
    """A number for people: two significant digits, never in powers of ten."""
    if math.isnan(value):
        return "unknown"
    if abs(value) >= 10:
        return f"{value:,.0f}"
    if abs(value) < 5e-5:
        return "0"
    text = f"{float(f'{value:.2g}'):.5f}".rstrip("0").rstrip(".")
    return f"{value:.1f}" if abs(value) >= 1 else text


def percent(share: float) -> str:
    """0.314 -> "31 %"; small shares keep a digit, and what is not 0 is never called 0."""
    if math.isnan(share):
        return "unknown"
    if 0 < share < 0.001:
        return "under 0.1 %"
    return f"{100 * share:.1f} %" if 0 < share < 0.0095 else f"{100 * share:.0f} %"


def signed(change: float) -> str:
    """A change with its sign: "+0.12", "−0.03", "0"; "" where it is unknown."""
    if math.isnan(change):
        return ""
    text = number(abs(change))
    return text if text == "0" else f"{'+' if change > 0 else '−'}{text}"


def p_value(p: float) -> str:
    """0.004975 -> "p < 0.005"; 0.3 -> "p = 0.30"."""
    for limit in (0.001, 0.005, 0.01, 0.05):
        if p < limit:
            return f"p < {limit}"
    return f"p = {p:.2f}"


def short_count(value: int) -> str:
    """27_300_000 -> "27.3M"."""
    for size, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}" if value < 999.5 * size else f"{value / size:.0f}{letter}"
    return str(value)


def points(share: float) -> str:
    """A change of a share in percentage points, with its sign: 0.031 -> "+3.1 points"."""
    if math.isnan(share):
        return "unknown"
    size = 100 * abs(share)
    text = f"{size:.0f}" if size >= 9.5 else f"{size:.1f}"
    return f"{'-' if share < 0 and float(text) else '+'}{text} points"


def count_of(count: int, noun: str) -> str:
    """2, "layer" -> "2 layers"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def sentence(text: str) -> str:
    """`text` with a capital first letter and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def layers_of(frame: pd.DataFrame) -> str:
    """The layers of a frame by number: "layer 3", "layers 0, 1, 2, 3 and 4 more"."""
    names = [str(int(layer)) for layer in frame["layer"].unique()]
    if len(names) == 1:
        return f"layer {names[0]}"
    shown = names[:_LAYERS_NAMED]
    return f"layers {', '.join(shown)}{f' and {len(names) - _LAYERS_NAMED} more' if len(names) > _LAYERS_NAMED else ''}"
