"""A trace or counts, and what was measured on it: each measure once, whoever asks, however often a page runs again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from moe_core.errors import TraceError
from moe_core.routing.trace.routing_counts import RoutingCounts

if TYPE_CHECKING:
    from moe_core.routing import AnyRouting
    from moe_core.routing.trace.trace import RoutingTrace

SAMPLE_TOKENS = 200_000
"""Of a trace that stays on disk, in memory for what looks at single tokens: whole documents, drawn at random."""
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(eq=False)
class Measured:
    """One routing, shared between sessions (see app/loaders.py). What `get` returns is shared too: only read it."""

    trace: AnyRouting
    """In memory, or on disk where it is larger than that: then counted part by part; or counts alone."""
    made_at: float = field(default_factory=time.time)
    """Seconds since 1970: when the trace was made or read."""
    _results: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    @property
    def is_sampled(self) -> bool:
        """True where `tokens` are not all tokens of the trace; of counts nothing is drawn."""
        return not isinstance(self.trace, RoutingCounts) and self.tokens.num_tokens < self.trace.num_tokens

    @property
    def tokens(self) -> RoutingTrace:
        """The trace itself or, of one on disk, SAMPLE_TOKENS of it. Raises TraceError where only counts were kept."""
        trace = self.trace
        if isinstance(trace, RoutingCounts):
            raise TraceError("these are counts, without single tokens; record a trace, or watch with a probe text")
        return self.keep(("sample",), lambda: trace.sample(max(SAMPLE_TOKENS, self._in_memory)))

    @property
    def _in_memory(self) -> int:
        return self.trace.num_tokens if hasattr(self.trace, "router_indices") else 0

    def get(self, measure: Callable[Concatenate[Any, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """measure(trace, *args, **kwargs), computed at the first call, for a measure that takes such a trace. Arguments
        must be hashable."""
        return self.keep(_key(measure, args, kwargs), lambda: measure(self.trace, *args, **kwargs))

    def look(self, measure: Callable[Concatenate[RoutingTrace, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """measure(tokens, *args, **kwargs), for what looks at single tokens, so never of counts (TraceError)."""
        return self.keep(_key(measure, args, kwargs), lambda: measure(self.tokens, *args, **kwargs))

    def has(self, measure: Callable[Concatenate[Any, P], R], *args: P.args, **kwargs: P.kwargs) -> bool:
        """True once `get` has this result: nothing is left to wait for."""
        return _key(measure, args, kwargs) in self._results

    def keep(self, key: tuple[Any, ...], make: Callable[[], R]) -> R:
        """What `make` returned at the first call with this key: a figure of what was measured, for example."""
        with self._lock:  # another session that asks meanwhile waits for the same result
            if key not in self._results:
                self._results[key] = make()
            return self._results[key]  # type: ignore[no-any-return]

    def part(self, layers: Sequence[int]) -> Measured:
        """Some layers only, measured apart: pairs of experts of every layer of a large model are too many.

        Of a trace on disk some layers are a sample; all of them are the whole trace. Counts are never a sample.
        """
        if list(layers) == self.trace.layers:
            return self
        if isinstance(self.trace, RoutingCounts):
            counts = self.trace
            return self.keep(("layers", *layers), lambda: Measured(counts.of_layers(layers)))
        return self.look(_layers_only, tuple(layers))


def _key(measure: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    return (measure.__module__, measure.__qualname__, args, tuple(sorted(kwargs.items())))


def _layers_only(trace: RoutingTrace, layers: tuple[int, ...]) -> Measured:
    places = [trace.layer_position(layer) for layer in layers]
    chosen = {
        name: array[places]
        for name in ("router_indices", "router_scores", "router_logits")
        if (array := getattr(trace, name)) is not None
    }
    return Measured(replace(trace, **chosen, layers=list(layers)))
