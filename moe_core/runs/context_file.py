"""What a run's held-out text gave beyond the trained length, kept beside it: analysis/context_<key>.json.

One file for each checkpoint, text, factor and number of texts. Reading needs no torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache

from pydantic import ConfigDict, TypeAdapter

from moe_core.program import program
from moe_core.routing.measures.beyond_length import LongContext
from moe_core.runs.analysis import AnalysisOf
from moe_core.runs.checksum import read_typed, with_checksum
from moe_core.runs.files import read_file
from moe_core.runs.folder import RunFolder


@dataclass(frozen=True)
class KeptContext:
    """What was found with what it is of. The fields are the file's keys."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    of: AnalysisOf
    factor: float
    """That the schemes stretch by."""
    computed_at: float
    """Seconds since 1970."""
    seconds: float
    """What it took."""
    found: LongContext


def write_context(run: RunFolder, kept: KeptContext) -> None:
    """Keep it, in place of an older one of the same. Raises RunError when the disk refuses."""
    run.write_file(f"analysis/context_{kept.of.key}.json", with_checksum(asdict(kept), indent=None))


def read_context(run: RunFolder, factor: float | None = None) -> KeptContext | None:
    """That of the newest step, and there the last that was computed, at this factor (None = any); None where there is
    none. Raises RunError for a file that is damaged."""
    found: list[KeptContext] = []
    for path in run.place.matching("analysis", "context_*.json"):
        remedy = f"delete it, `{program()} context --run {run.name}` makes it again"
        kept = read_typed(read_file(path), path, _reader(), "holds no reading beyond the trained length", remedy)[0]
        found += [kept] if factor in (None, kept.factor) else []
    return max(found, key=lambda kept: (kept.of.step, kept.computed_at), default=None)


@cache
def _reader() -> TypeAdapter[KeptContext]:
    return TypeAdapter(KeptContext)
