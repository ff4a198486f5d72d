"""What a merge is to do: from the command line, a configuration file, or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moe_core.config.hocon import HoconError, read_hocon
from moe_core.data.shards.shard_merge import Strategy
from moe_core.errors import UsageError, first_fault


class MergeFile(BaseModel):
    """A file for `data merge --config`. What the command line says wins."""

    model_config = ConfigDict(extra="forbid", strict=True)

    folders: list[str] = Field(default_factory=list)
    """Folders of shards, relative to the file."""
    out: str | None = None
    """Folder to write, relative to the file."""
    strategy: Strategy | None = None
    weights: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None = None
    """One for each folder."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None


@dataclass(frozen=True)
class MergePlan:
    """The arguments of `shard_merge.merge`."""

    folders: list[Path]
    out: Path
    strategy: Strategy
    weights: list[float]
    seed: int


def merge_plan(
    file: Path | None,
    *,
    folders: Sequence[Path] = (),
    out: Path | None = None,
    strategy: Strategy | None = None,
    weights: Sequence[float] | None = None,
    seed: int | None = None,
) -> MergePlan:
    """What is given wins over what the file says. Weights alone mean the strategy weighted. Raises UsageError."""
    read = MergeFile() if file is None else _read(file)
    base = Path() if file is None else file.parent
    chosen_out = out or (base / read.out if read.out else None)
    chosen_folders = list(folders) or [base / folder for folder in read.folders]
    if chosen_out is None or not chosen_folders:
        raise UsageError(
            "data merge needs folders and --out DIR, on the command line or in --config FILE; see `data merge --help`"
        )
    chosen_weights = list(read.weights or []) if weights is None else list(weights)
    chosen_strategy = strategy or read.strategy or ("weighted" if chosen_weights else "proportional")
    if strategy and weights is None and strategy != "weighted":
        chosen_weights = []  # the file's weights belong to its own strategy
    return MergePlan(
        chosen_folders, chosen_out, chosen_strategy, chosen_weights, read.seed or 0 if seed is None else seed
    )


def _read(file: Path) -> MergeFile:
    try:
        tree: Any = read_hocon(file)
    except (HoconError, OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UsageError(f"cannot read --config {str(file)!r}: {reason}") from None
    if not isinstance(tree, Mapping):
        raise UsageError(f"--config {str(file)!r} is no mapping; expected folders, out, strategy, weights and seed")
    try:
        return MergeFile.model_validate(dict(tree))
    except ValidationError as error:
        raise UsageError(f"--config {str(file)!r}: {first_fault(error).line}") from None
