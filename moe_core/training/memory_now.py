"""How much memory is taken at this moment, and was at most."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class MemoryNow:
    """Bytes of a GPU's tensors, or on a processor those that are resident for the whole process."""

    now: int
    peak: int
    """The most so far."""


def memory_now(device: torch.device) -> MemoryNow:
    """Of the device; other accelerators than CUDA are told by the process."""
    if device.type == "cuda":
        return MemoryNow(torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device))
    if _STATUS.exists():
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
        return MemoryNow(*(1024 * int(lines[name].split()[0]) for name in ("VmRSS", "VmHWM")))
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes where there is no /proc: macOS
    return MemoryNow(most, most)
