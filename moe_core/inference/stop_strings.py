"""Text that comes in pieces, up to the first of some strings: nothing of that string is ever given out."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Give it each piece of a text; it gives out what is certain to stand before a stop string.

    The string that is complete first ends the text, of several that end together the longest. Where the pieces are cut
    makes no difference.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        """The end of what came so far, as far as a stop string could begin with it."""

    def add(self, piece: str) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string ended it."""
        text = self._held + piece
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        most = max((len(stop) - 1 for stop in self._stops), default=0)
        beginnings = (at for at in range(max(0, len(text) - most), len(text)) if self._begins_a_stop(text[at:]))
        cut = next(beginnings, len(text))
        self._held = text[cut:]
        return text[:cut], False

    def rest(self) -> str:
        """What was held back: no stop string after all, once the text has ended otherwise."""
        held, self._held = self._held, ""
        return held

    def _begins_a_stop(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self._stops)
