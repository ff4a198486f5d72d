"""A trace on disk that may be larger than memory, counted part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from moe_core.errors import TraceError
from moe_core.routing.trace.trace import RoutingTrace, sample_parts
from moe_core.routing.trace.types import ScoreFunction

PART_TOKENS = 262_144
"""Tokens read at a time; a part ends at the last document border before this many."""
PART_BYTES = 2**26
"""Fewer tokens are read at a time where their arrays would take more than this: with logits of many experts."""
MAX_IN_MEMORY_BYTES = 2**28
"""Largest routing of one trace. A larger one is read part by part, and sampled to look at single tokens."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class StoredTrace:
    """A file written by RoutingTrace.save, of which only a part at a time is in memory.

    The same facts as a RoutingTrace but no arrays: `parts()` yields those. Counts, and every measure made of counts,
    take either and give the same answer. Make it with RoutingTrace.open.
    """

    path: Path
    num_tokens: int
    """T."""
    layers: list[int]
    """[L] layer numbers in the model, ascending."""
    num_experts: int
    """E."""
    top_k: int
    """K."""
    domains: list[str]
    score_function: ScoreFunction
    varying_experts: bool
    source: str
    vocabulary: Mapping[int, str] = field(repr=False)
    _counted: dict[tuple[Any, ...], Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def open(cls, path: str | Path) -> StoredTrace:
        """Read what is not per token. Raises TraceError if the file is missing, damaged or no trace."""
        from moe_core.routing.trace.parquet import read_metadata

        metadata, num_tokens = read_metadata(Path(path))
        if not num_tokens:
            raise TraceError(f"trace {str(path)!r} has no tokens; trace some text again")
        names = (
            "layers",
            "num_experts",
            "top_k",
            "domains",
            "score_function",
            "varying_experts",
            "source",
            "vocabulary",
        )
        return cls(path=Path(path), num_tokens=num_tokens, **{name: metadata[name] for name in names})

    @property
    def num_layers(self) -> int:
        """L, MoE layers in the trace."""
        return len(self.layers)

    def parts(self) -> Iterator[RoutingTrace]:
        """The trace in parts of whole documents, in order, each checked like any RoutingTrace.

        About PART_TOKENS tokens or PART_BYTES a part, two parts in memory at a time; a document longer than that is
        one part.
        Raises TraceError at a damaged part.
        """
        from moe_core.routing.trace.parquet import read_parts

        return read_parts(self.path, PART_TOKENS, PART_BYTES)

    def once(self, key: tuple[Any, ...], count: Callable[[], T]) -> T:
        """What `count` returned when it was first called with this key: reading the file takes seconds, and several
        measures are made of the same counts or sample. For what is of bounded size; it is only read."""
        if key not in self._counted:
            self._counted[key] = count()
        found: T = self._counted[key]
        return found

    def count_sources(self) -> int:
        """How many different source_ids there are; only that column is read."""
        from moe_core.routing.trace.parquet import count_ids

        return self.once(("sources",), lambda: len(count_ids(self.path, "source_id")[0]))

    def sample(self, max_tokens: int, seed: int = 0) -> RoutingTrace:
        """As RoutingTrace.sample: whole documents in a seeded order, as many as fit into `max_tokens`."""
        if self.num_tokens <= max_tokens:
            return RoutingTrace.load(self.path)
        return self.once(("sample", max_tokens, seed), lambda: self._sample(max_tokens, seed))

    def _sample(self, max_tokens: int, seed: int) -> RoutingTrace:
        from moe_core.routing.trace.parquet import count_ids

        return sample_parts(self.parts(), *count_ids(self.path, "document_id"), max_tokens, seed)


AnyTrace = RoutingTrace | StoredTrace
"""What every measure that is made of counts takes."""


def open_or_load(path: str | Path) -> AnyTrace:
    """The trace in the file: in memory, or on disk where it is too large for that. Raises TraceError."""
    stored = StoredTrace.open(path)
    slots, logits = 6 * stored.top_k, 2 * stored.num_experts  # bytes of a token in a layer; there may be no logits
    fits = stored.num_tokens * stored.num_layers * (slots + logits) <= MAX_IN_MEMORY_BYTES
    return RoutingTrace.load(path) if fits else stored
