"""The benchmarks by name. A custom one is a registered function, in a file given with --plugin:

from moe_core.evaluation.tasks import Context, Outcome, benchmark, of_questions

@benchmark("vowels", "Does it finish 'a e i o' with u?")
def vowels(context: Context) -> Outcome: ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moe_core.errors import UsageError

if TYPE_CHECKING:
    from moe_core.evaluation.tasks.context import Context, Outcome

    Function = Callable[[Context], Outcome]


@dataclass(frozen=True)
class Benchmark:
    """A registered function and what it answers."""

    name: str
    asks: str
    """One line."""
    function: Function
    plugin: str | None
    """The file it came from; None = ours."""


REGISTERED: dict[str, Benchmark] = {}
"""All that were registered so far, by name; catalogue.registered() has them in the order of the report."""
_reading: str | None = None
"""The plugin that is being read."""


def benchmark(name: str, asks: str) -> Callable[[Function], Function]:
    """Register a function as a benchmark. Raises UsageError for a name that is taken or cannot be given to --tasks."""
    if not name.replace("_", "").isalnum():
        raise UsageError(f"benchmark name {name!r} is not allowed; expected letters, digits and underscores")
    if name in REGISTERED and REGISTERED[name].plugin != _reading:
        raise UsageError(f"benchmark name {name!r} is taken; choose another one")

    def register(function: Function) -> Function:
        REGISTERED[name] = Benchmark(name, asks, function, _reading)
        return function

    return register


@contextmanager
def reading_plugin(path: str) -> Iterator[None]:
    """What is registered meanwhile comes from this file."""
    global _reading
    _reading = path
    try:
        yield
    finally:
        _reading = None
