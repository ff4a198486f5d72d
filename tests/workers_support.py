"""Tasks that a worker of another process imports, and a look at the processes of a command."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from moe_core.routing.workers.one_file import Report


def killed_once(folder: Path, report: Report) -> int:
    """What kill -9 does to the first worker that takes this item; the second one answers."""
    mark = folder / "begun"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    report(7)
    return os.getpid()


def killed_always(item: str, _: Report) -> int:
    """An item that no worker survives."""
    if item == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def workers_of(pid: int, count: int) -> list[int]:
    """The processes that `pid` spawned to work, as soon as there are so many."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = [child for child in children_of(pid) if b"spawn_main" in command_of(child)]
        if len(found) >= count:
            return found
        time.sleep(0.02)
    raise AssertionError(f"process {pid} started no {count} workers")


def children_of(pid: int) -> list[int]:
    """Ids of the processes that `pid` started."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # just ended
                continue
            if parent == pid:
                found.append(int(folder.name))
    return found


def command_of(pid: int) -> bytes:
    """The command line of a process; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def all_ended(pids: list[int]) -> bool:
    """Are these gone within some seconds?"""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if not any(command_of(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False
