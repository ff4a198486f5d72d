"""Colours with a meaning: an expert keeps its colour in every figure and on every page, and so does a domain.

Every categorical colour has a contrast of at least 3:1 (WCAG 2.2, 1.4.11) against the page in light and in dark, and
stays apart from the others of its palette under protanopia, deuteranopia and tritanopia (Machado et al. 2009); the
distances are measured in tests/test_figures_palette.py. Colours repeat after the tenth expert: a number always stands
beside them.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

# Ordered so that the first few are the furthest apart.
EXPERT_COLOURS = (
    "#2f65eb",  # blue
    "#cd8004",  # amber
    "#963db5",  # purple
    "#287443",  # green
    "#cd1819",  # red
    "#1ea1c7",  # cyan
    "#f458b3",  # pink
    "#76a062",  # sage
    "#ae79fd",  # lilac
    "#ac697e",  # mauve
)
# Muted, so that a domain is never taken for an expert.
DOMAIN_COLOURS = (
    "#3f6d98",  # steel
    "#ae8259",  # tan
    "#459b90",  # teal
    "#935569",  # plum
    "#978dc7",  # periwinkle
    "#6a6929",  # olive
)
SPLIT_COLOURS = {"train": "#8a8116", "validation": "#5a7fcf", "unseen": "#e27283"}
# Ordered so that the first few are the furthest apart.
RUN_COLOURS = (
    "#078dfa",  # azure
    "#f8564d",  # coral
    "#53952c",  # grass
    "#9c14dc",  # violet
    "#a5490e",  # rust
    "#3b7673",  # pine
    "#d546db",  # magenta
    "#ce2265",  # crimson
)

LIGHT_PAGE, LIGHT_TEXT = "#ffffff", "#0e151f"
DARK_PAGE, DARK_TEXT = "#12161c", "#e6ebf2"

# Lift around 1: purple = less than its even share, orange = more. The middle is see-through, so that "as by chance"
# looks like the page itself in light and in dark.
LIFT_LIMIT = 4.0
"""Lifts beyond 1/4 and 4 share the end colours; every lift map has this scale, whatever its layer or run."""
LIFT_STOPS = (1 / LIFT_LIMIT, 1 / 2, 1.0, 2.0, LIFT_LIMIT)
LIFT_COLOURS = (
    "rgba(84, 39, 136, 1)",
    "rgba(128, 115, 172, 0.6)",
    "rgba(128, 128, 128, 0)",
    "rgba(217, 123, 20, 0.6)",
    "rgba(164, 72, 2, 1)",
)
# From these log2 lifts on white figures read better than dark ones on a light page.
LIFT_WHITE_BELOW, LIFT_WHITE_ABOVE = -1.5, 1.7

LAYER_SHADES = ("#2b8a8f", "#8b5fbf")
"""First and last layer; those between are blended, each readable on both pages."""

TOKEN_STRENGTH = 0.62
"""Strongest background behind a token: the page's own text colour keeps a contrast of 4.5:1 on every expert and domain
colour painted this strongly, in light and dark."""
BAR = "#5d7185"
"""Bars of one measure: neither an expert nor a domain."""
HEAT = "#d97b14"
"""The one hue of quantities (entropy, surprise, chance ticks)."""
NEUTRAL = "#808080"
"""Axis-like helpers (baselines, borders, experts that are not highlighted): visible on both pages."""


def expert_colour(expert: int) -> str:
    """The colour of an expert, "#rrggbb"; colours repeat every ten experts."""
    return EXPERT_COLOURS[expert % len(EXPERT_COLOURS)]


def domain_colour(name: str, domains: Sequence[str]) -> str:
    """The colour of a domain by its place in `domains` (the run's own order); an unknown name is neutral."""
    return DOMAIN_COLOURS[domains.index(name) % len(DOMAIN_COLOURS)] if name in domains else NEUTRAL


def run_colours(names: Sequence[str]) -> dict[str, str]:
    """The colour of each of at most len(RUN_COLOURS) runs that are drawn together.

    It follows from the run's name, so that a run has one colour in every figure and on every day. Where two names ask
    for the same, the later one takes the next that is free: a run that is added changes no colour.
    """
    taken: dict[str, str] = {}
    for name in names:
        first = zlib.crc32(name.encode()) % len(RUN_COLOURS)
        ordered = RUN_COLOURS[first:] + RUN_COLOURS[:first]
        taken[name] = next((colour for colour in ordered if colour not in taken.values()), NEUTRAL)
    return taken


def relative_luminance(colour: str) -> float:
    """WCAG 2.2 relative luminance of "#rrggbb", 0 = black .. 1 = white."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast_ratio(first: str, second: str) -> float:
    """WCAG 2.2 contrast of two colours, 1 = the same .. 21 = black on white."""
    dark, light = sorted((relative_luminance(first), relative_luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def ink_on(colour: str) -> str:
    """Black or white, whichever is easier to read on `colour` (at least 4.5:1)."""
    return max("#000000", "#ffffff", key=lambda ink: contrast_ratio(ink, colour))
