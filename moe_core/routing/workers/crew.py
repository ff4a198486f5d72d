"""Who does the work: this process, several processes, or a Ray cluster. All give the same results, in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Protocol, TypeVar

from moe_core.errors import TraceError
from moe_core.routing.workers.one_file import Report

ATTEMPTS = 3
"""How often an item is begun whose worker is killed, before that is an error."""
POLL_SECONDS = 0.25
Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine(Protocol):
    """A context manager around workers."""

    def __enter__(self) -> Engine:
        """Start what is needed."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers, at once where there was an error."""

    def run(
        self,
        task: Callable[[Item, Report], Result],
        items: Sequence[Item],
        may_begin: Callable[[], bool],
        heard: Callable[[int], None],
    ) -> Iterator[tuple[int, Result]]:
        """(place of the item, what `task` made of it) as they are finished.

        No further item is begun while `may_begin` says no. `heard` is called with the sum of what all items reported,
        finished ones too, a few times a second. Raises TraceError, naming the item by str, whose worker was killed
        ATTEMPTS times.
        """


class ThisProcess:
    """One worker: the process that asks. Nothing is started, and an item is done at a time."""

    def __enter__(self) -> ThisProcess:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing was started."""

    def run(
        self,
        task: Callable[[Item, Report], Result],
        items: Sequence[Item],
        may_begin: Callable[[], bool],  # noqa: ARG002 - results are taken in order, so that none waits for another
        heard: Callable[[int], None],
    ) -> Iterator[tuple[int, Result]]:
        """See Engine.run."""
        before = 0
        for number, item in enumerate(items):
            reported = 0

            def report(tokens: int, before: int = before) -> None:
                nonlocal reported
                reported = tokens
                heard(before + tokens)

            yield number, task(item, report)
            before += reported


def killed_again(item: object) -> TraceError:
    """The error of an item whose worker was killed ATTEMPTS times."""
    return TraceError(
        f"{item}: the process that worked on it was killed {ATTEMPTS} times, most likely for want of memory; use fewer "
        "workers, or leave this file out"
    )
