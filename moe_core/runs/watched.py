"""What a run that was watched in someone else's training loop says about its model: watched.json.

Such a run has no configuration, no checkpoint and no text of its own; this file stands in the place of config.json.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter

from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.runs.checksum import read_typed, with_checksum
from moe_core.runs.metric_log import Count, LoadLine, MetricLine, Word

FILE = "watched.json"
Layer = Annotated[int, Field(ge=0, le=100_000)]
Experts = Annotated[int, Field(ge=1, le=32_768)]


@dataclass(frozen=True)
class WatchedModel:
    """A model that someone else trains."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: Word
    """Its class."""
    layers: Annotated[list[Layer], Field(min_length=1, max_length=10_000)]
    """Layer numbers of its routers, ascending."""
    num_experts: Experts
    top_k: Experts
    varying_experts: bool
    """See RoutingTrace.varying_experts."""
    parameters: Count
    trained_parameters: Count
    """Those that get gradients; few where adapters are trained."""
    ranks: Annotated[int, Field(ge=1, le=10**7)] = 1
    """Processes whose tokens are counted together."""
    probe_tokens: Count = 0
    """Of the probe text; 0 where there is none."""

    def to_bytes(self) -> bytes:
        """The file."""
        return with_checksum(asdict(self))


def watched_from_bytes(content: bytes, path: Path) -> tuple[WatchedModel, bool]:
    """Read watched.json, and whether it was verified. Raises RunError naming the file and the first wrong field."""
    return read_typed(
        content, path, _reader(), "does not describe a model", "restore it from a copy, or watch the training again"
    )


def counts_of_lines(lines: Iterable[MetricLine], model: WatchedModel, source: str) -> RoutingCounts | None:
    """What the "load" lines of a watched run add up to, a step for each reading; None where there is none."""
    loads = [line for line in lines if isinstance(line, LoadLine) and line.tokens_per_expert is not None]
    places = {layer: place for place, layer in enumerate(model.layers)}
    fitting = [line for line in loads if line.layer in places and len(line.expert_load) == model.num_experts]
    steps = sorted({line.step for line in fitting})
    at = {step: place for place, step in enumerate(steps)}
    counts = np.zeros((len(steps), len(places), model.num_experts), np.int64)
    tokens = np.zeros(len(steps), np.int64)
    for line in fitting:
        counts[at[line.step], places[line.layer]] += np.array(line.tokens_per_expert, np.int64)
        tokens[at[line.step]] = max(tokens[at[line.step]], line.tokens or 0)
    if not tokens.any():
        return None
    return RoutingCounts.from_arrays(
        counts,
        top_k=model.top_k,
        tokens=tokens,
        steps=steps,
        layers=model.layers,
        varying_experts=model.varying_experts,
        source=source,
    )


@cache
def _reader() -> TypeAdapter[WatchedModel]:
    return TypeAdapter(WatchedModel)
