"""A Ray cluster, for files that several machines can read; Ray is an optional install (extra `ray`)."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import pyarrow as pa

from moe_core.errors import TraceError, UsageError
from moe_core.routing.workers.crew import ATTEMPTS, POLL_SECONDS, Item, Result, killed_again
from moe_core.routing.workers.one_file import Report

LOOPBACK = "127.0.0.1"
REACHABLE_SECONDS = 10.0


class RayCluster:
    """Up to `workers` tasks at a time on the cluster at `address`, else at RAY_ADDRESS, else on one of this machine's
    own, of as many workers, that listens on loopback alone and ends with the work.

    A cluster's machines must have Moescope installed and find the files under the same paths. Ray repeats a task whose
    worker is killed. What a task reports is heard of when it is done.
    """

    def __init__(self, workers: int, address: str | None = None) -> None:
        self._workers = workers
        self._address = address or os.environ.get("RAY_ADDRESS") or None
        self._ray: Any = None
        self._begun_here = False

    def __enter__(self) -> RayCluster:
        # Read when Ray is imported: statistics to its makers, and listening on every network of this machine.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        try:
            import ray
        except ImportError:
            raise UsageError("engine 'ray' needs Ray: pip install 'moescope[ray]'; or use engine 'processes'") from None
        self._ray = ray
        if not ray.is_initialized():
            self._begin()
        return self

    def _begin(self) -> None:
        # "local": without an address Ray would take a cluster that happens to run here, or to have run.
        own = {"address": "local", "num_cpus": self._workers, "include_dashboard": False, "_node_ip_address": LOOPBACK}
        options = own if self._address is None else {"address": self._address}
        try:
            _check_reachable(self._address)
            self._ray.init(log_to_driver=False, logging_level="error", **options)
        except (OSError, RuntimeError, ValueError) as error:
            where = f"at {self._address!r} " if self._address else ""
            reason = " ".join(str(error).split())[:200]
            raise TraceError(
                f"no Ray cluster {where}({reason}); check the address, or use engine 'processes'"
            ) from None
        self._begun_here = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._begun_here:
            self._ray.shutdown()

    def run(
        self,
        task: Callable[[Item, Report], Result],
        items: Sequence[Item],
        may_begin: Callable[[], bool],
        heard: Callable[[int], None],
    ) -> Iterator[tuple[int, Result]]:
        """See Engine.run."""
        ray = self._ray
        remote = ray.remote(num_cpus=1, max_retries=ATTEMPTS - 1)(_in_worker)
        waiting = deque(range(len(items)))
        running: dict[Any, int] = {}
        reported = 0
        try:
            while waiting or running:
                while waiting and len(running) < self._workers and may_begin():
                    number = waiting.popleft()
                    running[remote.remote(task, items[number])] = number
                done, _ = ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS)
                heard(reported)
                for reference in done:
                    number = running.pop(reference)
                    tokens, result = self._result(reference, items[number])
                    reported += tokens
                    yield number, result
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    def _result(self, reference: Any, item: object) -> tuple[int, Any]:
        errors = self._ray.exceptions
        try:
            found: tuple[int, Any] = self._ray.get(reference)
        except (errors.WorkerCrashedError, errors.OutOfMemoryError, errors.NodeDiedError):
            raise killed_again(item) from None
        except (errors.RaySystemError, errors.RayTaskError) as error:
            if "No module named 'moe_core'" in str(error):
                raise TraceError(
                    "the cluster's machines have no Moescope; install the same version there, or use engine 'processes'"
                ) from None
            raise
        return found


def _check_reachable(address: str | None) -> None:
    """Raise OSError where nothing listens at host:port: Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=REACHABLE_SECONDS).close()


def _in_worker(task: Callable[[Any, Report], Any], item: Any) -> tuple[int, Any]:
    """What was reported last, and the result."""
    pa.set_cpu_count(1)  # what the task asked the cluster for
    reported = [0]
    result = task(item, reported.append)
    return reported[-1], result
