"""The results there are: those that come with Moescope, and one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_core.errors import DataError, MoescopeError
from moe_core.runs.files import read_json_object
from moe_core.words import short_count

SHIPPED = Path(__file__).resolve().parent / "shipped"
FORMAT = 1
"""Of the files; another one is of another version."""
OWN = Path("out") / "comparisons"
"""Where compare-dense and compare-routers write unless told otherwise."""
_TITLES = {"dense": "MoE against dense", "routers": "Routers against each other"}


@dataclass(frozen=True, eq=False)
class Found:
    """A result and where it lies."""

    path: Path
    result: Mapping[str, Any]

    @property
    def title(self) -> str:
        """For people: what was compared, on which text."""
        seeds, tokens = len(self.result["seeds"]), short_count(self.result["tokens"])
        return f"{_TITLES[self.result['kind']]}, {self.result['data']} text, {seeds} seeds of {tokens} tokens"


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


def read_result(path: Path) -> dict[str, Any]:
    """A result as build_result made it. Raises DataError or RunError for anything else."""
    result = read_json_object(path)
    if result.get("format") != FORMAT or result.get("kind") not in _TITLES:
        raise DataError(f"{str(path)!r} is no result of this version of compare-dense or compare-routers; run it again")
    return result
