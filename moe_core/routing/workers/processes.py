"""Processes of this machine that take one item after the other; one that is killed is replaced."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from moe_core.routing.workers.crew import ATTEMPTS, POLL_SECONDS, Item, Result, killed_again
from moe_core.routing.workers.one_file import Report


class Processes:
    """`workers` processes for runs of up to `items` items.

    They are spawned: a process that is forked beside the threads of Arrow or torch may find a lock held for ever.
    Each is a pool of its own, so that a killed one names its item and takes no other's work with it.
    Ctrl+C in a terminal reaches this process alone; the workers end with it, however it ends: they wait at a pipe of
    which it has the other end.
    """

    def __init__(self, workers: int, items: int) -> None:
        self._context = get_context("spawn")
        self._pools: list[ProcessPoolExecutor | None] = [None] * workers
        # Without a lock, which a killed worker would keep: a place is written by the one worker that has its item.
        self._reported = self._context.RawArray("q", items)
        self._alive, self._here = self._context.Pipe(duplex=False)

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._here.close()  # ends the workers, whatever they do
        for pool in self._pools:
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)
        self._here.close()
        self._alive.close()

    def run(
        self,
        task: Callable[[Item, Report], Result],
        items: Sequence[Item],
        may_begin: Callable[[], bool],
        heard: Callable[[int], None],
    ) -> Iterator[tuple[int, Result]]:
        """See Engine.run."""
        reported = np.frombuffer(self._reported, dtype=np.int64)
        reported[:] = 0
        killed: Counter[int] = Counter()
        waiting, idle = deque(range(len(items))), deque(range(len(self._pools)))
        running: dict[Future[Result], tuple[int, int]] = {}
        while waiting or running:
            while idle and waiting and (may_begin() or killed[waiting[0]]):
                place, number = idle.popleft(), waiting.popleft()
                reported[number] = 0
                running[self._submit(place, task, number, items[number])] = (place, number)
            done, _ = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            heard(int(reported.sum()))
            for future in done:
                place, number = running.pop(future)
                idle.append(place)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    self._pools[place] = None
                    killed[number] += 1
                    if killed[number] == ATTEMPTS:
                        raise killed_again(items[number]) from None
                    waiting.appendleft(number)
                else:
                    yield number, result

    def _submit(self, place: int, task: Callable[..., Result], number: int, item: object) -> Future[Result]:
        pool = self._pools[place]
        if pool is None:
            threads = max(1, (os.cpu_count() or 1) // len(self._pools))
            pool = self._pools[place] = ProcessPoolExecutor(
                1, mp_context=self._context, initializer=_begin_worker, initargs=(self._alive, self._reported, threads)
            )
        with _without_interrupts():
            return pool.submit(_in_worker, task, number, item)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes that start meanwhile never hear Ctrl+C, which a terminal sends to all. This one hears it later."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # or it would be started within, and lift the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_worker: dict[str, Any] = {}
"""What a worker process was given when it began."""


def _begin_worker(alive: Connection, reported: Any, threads: int) -> None:
    _worker["reported"] = reported
    pa.set_cpu_count(threads)  # or each worker would decode with as many as there are processors
    threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()


def _end_with_parent(alive: Connection) -> None:
    """Nothing is ever sent: the pipe ends when the parent closes it or is gone."""
    with suppress(EOFError, OSError):
        alive.recv_bytes()
    os._exit(1)


def _in_worker(task: Callable[[Any, Report], Result], number: int, item: Any) -> Result:
    def report(tokens: int) -> None:
        _worker["reported"][number] = tokens

    return task(item, report)
