"""What colours become on the page."""

from __future__ import annotations


def blend(colour: str, page: str, strength: float) -> str:
    """`colour` painted over `page` with opacity `strength` 0..1, as browsers do it (in sRGB)."""
    pairs = [(int(colour[i : i + 2], 16), int(page[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(strength * top + (1 - strength) * below):02x}" for top, below in pairs)
