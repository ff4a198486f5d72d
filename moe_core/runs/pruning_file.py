"""The pruning curves of a run as they are kept beside it: checkpoints/<run>/analysis/pruning_<key>.json.

One file for each checkpoint and text. What is not finite is null in the file and NaN in memory. Reading needs no torch.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cache
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, TypeAdapter

from moe_core.json_values import json_safe
from moe_core.program import program
from moe_core.routing.measures.pruning import PruningCurves
from moe_core.runs.analysis import AnalysisOf
from moe_core.runs.checksum import read_typed, with_checksum
from moe_core.runs.files import read_file
from moe_core.runs.folder import RunFolder


@dataclass(frozen=True)
class KeptCurves:
    """Curves with what they are of. The fields are the file's keys."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    of: AnalysisOf
    """The checkpoint and the text that was scored."""
    tuning_fingerprint: str
    """Hash of the text that the orders were made from; none of its documents is scored."""
    tuning_tokens: int
    computed_at: float
    """Seconds since 1970."""
    seconds: float
    """What it took."""
    curves: PruningCurves


def write_curves(run: RunFolder, kept: KeptCurves) -> None:
    """Keep them, in place of older ones of the same checkpoint and text. Raises RunError when the disk refuses."""
    run.write_file(f"analysis/pruning_{kept.of.key}.json", with_checksum(json_safe(asdict(kept))))


def read_curves(run: RunFolder) -> KeptCurves | None:
    """The curves of the newest step, and there the last that were computed; None where there are none.

    Raises RunError for a file that is damaged.
    """
    found: list[KeptCurves] = []
    for path in run.place.matching("analysis", "pruning_*.json"):
        remedy = f"delete it, `{program()} ablate --run {run.name} --curve` makes it again"
        found.append(read_typed(read_file(path), path, _reader(), "holds no pruning curves", remedy)[0])
    return max(found, key=lambda kept: (kept.of.step, kept.computed_at), default=None)


def _with_nan(value: Any) -> Any:
    """json_safe undone: no field may be None, so that each null was no finite number."""
    if isinstance(value, dict):
        return {key: _with_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_nan(item) for item in value]
    return math.nan if value is None else value


@cache
def _reader() -> TypeAdapter[KeptCurves]:
    return TypeAdapter(Annotated[KeptCurves, BeforeValidator(_with_nan)])
