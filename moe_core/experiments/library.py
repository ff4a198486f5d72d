"""The results there are: those that come with Moescope, and one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_core.errors import MoescopeError
from moe_core.experiments.comparison_result import ComparisonResult, Kind, read_result
from moe_core.words import short_count

SHIPPED = Path(__file__).resolve().parent / "shipped"
OWN = Path("out") / "comparisons"
"""Where compare-dense and compare-routers write unless told otherwise."""
_TITLES: dict[Kind, str] = {"dense": "MoE against dense", "routers": "Routers against each other"}


@dataclass(frozen=True, eq=False)
class Found:
    """A result and where it lies."""

    path: Path
    result: ComparisonResult

    @property
    def title(self) -> str:
        """For people: what was compared, on which text."""
        seeds, tokens = len(self.result.seeds), short_count(self.result.tokens)
        return f"{_TITLES[self.result.kind]}, {self.result.data} text, {seeds} seeds of {tokens} tokens"


def find_results(folders: Sequence[Path] | None = None) -> dict[str, Found]:
    """The results in the folders by name, in the order of names; a later folder's wins. None = SHIPPED, then OWN.

    Files that are no results are passed over.
    """
    found: dict[str, Found] = {}
    for folder in (SHIPPED, OWN) if folders is None else folders:
        for path in sorted(folder.glob("*.json")):
            try:
                found[path.stem] = Found(path, read_result(path))
            except MoescopeError:
                continue
    return dict(sorted(found.items()))
