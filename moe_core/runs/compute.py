"""How a training run really computes: compute.json beside its status, written when its first step begins."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated

from pydantic import ConfigDict, Field, TypeAdapter

from moe_core.runs.checksum import read_typed, with_checksum
from moe_core.runs.files import read_file

if TYPE_CHECKING:
    from moe_core.runs.folder import RunFolder

FILE = "compute.json"
Word = Annotated[str, Field(max_length=100)]


@dataclass(frozen=True)
class Compute:
    """What was seen of the operations of a training step on this machine, the last time that it was begun."""

    __pydantic_config__ = ConfigDict(strict=True)

    device: Word
    """Its kind: cpu, cuda or mps."""
    attention_backend: Word
    """Which of torch's ways of scaled dot product attention it takes: flash, efficient, cudnn or math."""
    attention_dtype: Word
    """Of the queries it was given."""
    router_dtype: Word
    """Of the router's matrix product."""
    weights_dtype: Word
    """Of the weights that are updated."""

    @property
    def sentence(self) -> str:
        """ "Computes on cpu: attention by flash in bfloat16, router in float32, weights in float32."."""
        return (
            f"Computes on {self.device}: attention by {self.attention_backend} in {self.attention_dtype}, router in "
            f"{self.router_dtype}, weights in {self.weights_dtype}."
        )


def write_compute(run: RunFolder, compute: Compute) -> None:
    """Keep it in the run's folder. Raises RunError when the disk refuses."""
    run.write_file(FILE, with_checksum(asdict(compute)))


def read_compute(run: RunFolder) -> Compute | None:
    """What was kept; None for a run that was trained before this was. Raises RunError where the file is damaged."""
    path = run.place.find(FILE)
    try:
        content = read_file(path)
    except FileNotFoundError:
        return None
    return read_typed(content, path, _reader(), "does not say how a run computes", "delete it; --resume writes it")[0]


@cache
def _reader() -> TypeAdapter[Compute]:
    return TypeAdapter(Compute)
