"""Numbers and words for people, once for pages, figures, reports and the command line.

Every rounding here goes to the nearest value, and a tie goes away from zero: 16.5 % is "17 %". JavaScript's toFixed and
toPrecision round so, Python's format rounds a tie to the even digit. app/components/words.js says the same in a
browser; a test holds the two together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from decimal import ROUND_HALF_UP, Context, Decimal

_ALL_DIGITS = Context(prec=400)  # any float with a few decimals
_LAYERS_NAMED = 4


def fixed(value: float, digits: int, *, thousands: bool = False) -> str:
    """`value` with `digits` decimals, a tie away from zero: 0.125, 2 -> "0.13"."""
    if not math.isfinite(value):
        return str(value)
    return f"{_rounded(value, -digits):{',' if thousands else ''}f}"


def number(value: float) -> str:
    """A number for people: two significant digits, never in powers of ten; whole from 10 on, "1,235"."""
    if math.isnan(value):
        return "unknown"
    size = abs(value)
    if size >= 10:
        return fixed(value, 0, thousands=True)
    if size < 5e-5:
        return "0"
    if size >= 1:
        return fixed(value, 1)
    two_digits = _rounded(value, Decimal(value).adjusted() - 1)
    return fixed(float(two_digits), 5).rstrip("0").rstrip(".")


def two_digits(value: float) -> str:
    """As `number`, with both its digits also where the last is 0: for numbers that stand below each other, "0.60" above
    "0.69"."""
    if not 5e-5 <= abs(value) < 1:
        return number(value)
    rounded = _rounded(value, Decimal(value).adjusted() - 1)
    return fixed(value, min(1 - rounded.adjusted(), 5))


def percent(share: float) -> str:
    """0.314 -> "31 %"; small shares keep a digit, and what is not 0 is never called 0."""
    if math.isnan(share):
        return "unknown"
    if 0 < share < 0.001:
        return "under 0.1 %"
    return f"{fixed(100 * share, 1 if 0 < share < 0.0095 else 0)} %"


def parts_of_all(counts: Sequence[int]) -> list[str]:
    """What each count is of their sum, in percent that add up to 100: [2, 1] -> ["67 %", "33 %"].

    Each is its share rounded down; the points that are then missing go to those that lost most by it, the first where
    several lost as much. Where no part has a tenth of all, in tenths of a percent.
    """
    total = sum(counts)
    if not total:
        return ["0 %"] * len(counts)
    points = 1000 if max(counts) * 200 < 19 * total else 100
    shares = [count * points // total for count in counts]
    lost = sorted(range(len(counts)), key=lambda i: -(counts[i] * points % total))
    for i in lost[: points - sum(shares)]:
        shares[i] += 1
    least = "0.1" if points == 1000 else "1"
    return [
        f"under {least} %" if count and not share else f"{share / 10:.1f} %" if points == 1000 else f"{share} %"
        for count, share in zip(counts, shares, strict=True)
    ]


def signed(change: float, digits: int | None = None) -> str:
    """A change with its sign: "+0.12", "−0.03", "0"; "" where it is unknown.

    `digits` None writes the size as `number` does; in a column of a table it is the number of decimals.
    """
    if math.isnan(change):
        return ""
    sign = "−" if change < 0 else "+"
    if digits is not None:
        return sign + fixed(abs(change), digits)
    text = number(abs(change))
    return text if text == "0" else sign + text


def signed_two_digits(change: float) -> str:
    """As `signed`, with both digits as in `two_digits`."""
    text = "" if math.isnan(change) else two_digits(abs(change))
    return text if text in ("", "0") else ("−" if change < 0 else "+") + text


def points(share: float) -> str:
    """A change of a share in percentage points, with its sign: 0.031 -> "+3.1 points"."""
    if math.isnan(share):
        return "unknown"
    size = 100 * abs(share)
    text = fixed(size, 0 if size >= 9.5 else 1)
    return f"{'−' if share < 0 and float(text) else '+'}{text} points"


def p_value(p: float) -> str:
    """0.004975 -> "p < 0.005"; 0.3 -> "p = 0.30"."""
    for limit in (0.001, 0.005, 0.01, 0.05):
        if p < limit:
            return f"p < {limit}"
    return f"p = {fixed(p, 2)}"


def short_count(value: int) -> str:
    """27_300_000 -> "27.3M"."""
    for size, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}" if value < 999.5 * size else f"{value / size:.0f}{letter}"
    return str(value)


def count_of(count: int, noun: str) -> str:
    """2000, "token" -> "2,000 tokens"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def ordinal(place: int) -> str:
    """A place in an order: "1st", "22nd", "113th"."""
    last = 0 if place % 100 in (11, 12, 13) else place % 10
    ending = {1: "st", 2: "nd", 3: "rd"}.get(last, "th")
    return f"{place}{ending}"


def duration(seconds: float) -> str:
    """Seconds as "40 s", "3 min 20 s" or "1 h 05 min"; what is negative counts as nothing."""
    whole = round(max(0.0, seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def sentence(text: str) -> str:
    """`text` with a capital first letter and, unless it ends in a mark or in code, a full stop."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?", "`")) else ".")


def layers_named(layers: Iterable[float]) -> str:
    """Layers by number, each once: "layer 3", "layers 0, 1, 2, 3 and 4 more"."""
    names = [str(int(layer)) for layer in dict.fromkeys(layers)]
    if len(names) == 1:
        return f"layer {names[0]}"
    more = f" and {len(names) - _LAYERS_NAMED} more" if len(names) > _LAYERS_NAMED else ""
    return f"layers {', '.join(names[:_LAYERS_NAMED])}{more}"


def _rounded(value: float, exponent: int) -> Decimal:
    """`value` to the nearest multiple of 10 ** exponent, a tie away from zero; exact, whatever the float's size."""
    return Decimal(value).quantize(Decimal(1).scaleb(exponent), rounding=ROUND_HALF_UP, context=_ALL_DIGITS)
