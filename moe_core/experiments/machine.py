"""The machine that measured: what a figure of time must name."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path

from moe_core.experiments.speed_result import Environment

LIBRARIES = ("torch", "transformers", "numpy", "pandas", "pyarrow", "streamlit")


def environment(threads: int) -> Environment:
    """Hardware, versions and threads, without anything that names the machine or its owner."""
    import torch

    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            versions[library] = "not installed"
    return Environment(
        processor=_processor(),
        processors_usable=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        accelerator=torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        threads=threads,
        load_average_before=round(os.getloadavg()[0], 2),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions=versions,
    )


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found is not None else platform.processor() or "unknown"
