"""How long work tells whoever started it how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as progress(stage, done, total); a new stage starts counting anew."""


def silent(stage: str, done: int, total: int) -> None:
    """No one is watching."""
