"""The only file with caches. Every key holds the run's path and what changes when the run is trained on or anew.

Values that cannot be changed by a reader (a RoutingTrace, a model in eval mode) are shared between sessions; tables are
copied for each. All caches are bounded.
"""

# ruff: noqa: ARG001  (an argument that only belongs to a cache key is not used in the body)

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from moe_core.config import Config
from moe_core.errors import RunError
from moe_core.runs import RunFolder, RunSummary, list_runs
from moe_core.runs.names import checkpoints_root

if TYPE_CHECKING:
    import pandas as pd

    from moe_core.routing.trace import RoutingTrace
    from moe_core.runs.checkpoint import LoadedRun

Stamp = tuple[int, int, int]
"""Modification time in ns, size in bytes and inode: another file, or a changed one, has another stamp."""


def stamp(path: Path) -> Stamp:
    """What identifies the present content of a file or folder; zeros when there is none."""
    try:
        entry = path.stat()
    except OSError:
        return (0, 0, 0)
    return (entry.st_mtime_ns, entry.st_size, entry.st_ino)


def runs() -> list[RunSummary]:
    """All runs, running ones first, then the last updated first; at most a second old."""
    return _runs(str(checkpoints_root().resolve()))


def forget_runs() -> None:
    """Read the list of runs anew at the next call: one was just started."""
    _runs.clear()


@st.cache_data(ttl=1.0, max_entries=4, show_spinner=False)
def _runs(root: str) -> list[RunSummary]:
    return sorted(list_runs(root), key=lambda run: not run.is_live)  # the sort is stable


def config(run: RunFolder) -> Config:
    """The configuration the run was started with. Raises RunError."""
    return _config(str(run.root), run.name, stamp(run.path / "config.json"))


@st.cache_resource(max_entries=32, show_spinner=False)
def _config(root: str, name: str, changed: Stamp) -> Config:
    return RunFolder(name, root).config()


def metrics(run: RunFolder, kind: str) -> pd.DataFrame:
    """The run's metric lines of one kind, oldest first; empty when there is none."""
    import pandas as pd

    records = _metric_records(str(run.root), run.name, stamp(run.metrics_path))
    return pd.DataFrame([record for record in records if record["kind"] == kind])


@st.cache_resource(max_entries=8, show_spinner=False)
def _metric_records(root: str, name: str, changed: Stamp) -> list[dict[str, Any]]:
    return RunFolder(name, root).metric_records()


def probe_trace(run: RunFolder, step: int | None = None) -> RoutingTrace:
    """Routing of the fixed probe set at `step`, by default the latest. Raises RunError before the first probe."""
    steps = run.probe_steps()
    if not steps:
        raise RunError(
            f"run {run.name!r} has no routing to show yet; the trainer keeps some at every evaluation, "
            "see the Training page for how far it is"
        )
    path = run.probe_path(steps[-1] if step is None else step)
    return _trace(str(path), stamp(path))


@st.cache_resource(max_entries=16, show_spinner=False)
def _trace(path: str, changed: Stamp) -> RoutingTrace:
    from moe_core.routing import RoutingTrace

    return RoutingTrace.load(path)


def loaded_run(run: RunFolder) -> LoadedRun:
    """The run's latest checkpoint in memory, shared by all sessions. Raises RunError when missing or damaged.

    Two models at most are kept. The key is the newest checkpoint's manifest: a run trained on, or anew, is read again.
    """
    from moe_core.runs.checkpoint import find_checkpoint

    folder = find_checkpoint(run)
    return _loaded_run(str(run.root), run.name, str(folder), stamp(folder / "manifest.json"))


@st.cache_resource(max_entries=2, show_spinner="Loading the model ...")
def _loaded_run(root: str, name: str, folder: str, changed: Stamp) -> LoadedRun:
    from moe_core.runs.checkpoint import load_run

    return load_run(name, root)
