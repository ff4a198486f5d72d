"""How long work tells whoever started it how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as progress(stage, done, total); a new stage starts counting anew. What stands in brackets at a stage's end
may change while it goes on: "counting tokens (3 of 12 files)"."""


def silent(stage: str, done: int, total: int) -> None:
    """No one is watching."""


def stage_name(stage: str) -> str:
    """A stage without what stands in brackets at its end."""
    return stage.partition(" (")[0]
