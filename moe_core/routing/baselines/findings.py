"""The words of each verdict: what was found, and how clearly."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What the column `verdict` says when a measure is above its null: by enough to matter, or only slightly."""

    clearly: str
    slightly: str

    @property
    def both(self) -> tuple[str, str]:
        """Every verdict that says something was found."""
        return self.clearly, self.slightly


def _finding(what: str, comparison: str) -> Finding:
    return Finding(f"{what} clearly {comparison} than chance", f"{what} slightly {comparison} than chance")


DOMAIN = _finding("knows the domain of a token", "better")
PERSISTENCE = _finding("keeps the expert of the token before", "more often")
COACTIVATION = _finding("chooses some experts together", "more often")
VOCABULARY = _finding("specialises by token", "more")
FLOW = _finding("knows the expert of the layer before", "better")
