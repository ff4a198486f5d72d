"""Where the parts of a checkpoint lie that several processes write (training/parallel/sharded_checkpoint.py)."""

from __future__ import annotations

import re
from pathlib import Path

from moe_core.runs.files import remove_folder
from moe_core.runs.folder import RunFolder

SHARDED = "sharded"
_COMPLETE = re.compile(r"step-(\d{6,12})")


def newest_sharded(run: RunFolder, after: int) -> Path | None:
    """The folder of the newest complete one behind step `after`; None where there is none."""
    folder = run.path / SHARDED
    steps = {int(m[1]): p for p in (folder.iterdir() if folder.is_dir() else ()) if (m := _COMPLETE.fullmatch(p.name))}
    newest = max(steps, default=after)
    return steps[newest] if newest > after else None


def remove_sharded(run: RunFolder) -> None:
    """An ordinary checkpoint is there that is newer: what was written in parts before is not needed."""
    if (run.path / SHARDED).exists():
        remove_folder(run.path / SHARDED)
