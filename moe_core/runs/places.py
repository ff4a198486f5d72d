"""Where a run's files are read and where they are written.

A run that comes with Moescope is read from its package. What is found out about it is written to the root of
the working folder, as for every run, and read from there from then on, file by file. A run of the same name in the root
hides it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moe_core.runs.names import checkpoints_root, is_run_name, run_path

SHIPPED = Path(__file__).resolve().parent / "shipped"
"""Runs that come with Moescope, in a checkout as in an installed package. Nothing is ever written there."""
# What makes a folder in the root a run of its own, and not only what was found out about one that comes with Moescope.
_OF_A_RUN = ("config.json", "watched.json", "weights")


@dataclass(frozen=True)
class RunPlace:
    """The folders of one run; neither needs to exist."""

    written: Path
    shipped: Path

    def is_shipped(self) -> bool:
        """True for a run that comes with Moescope, unless the root has a run of that name."""
        return self.shipped.is_dir() and not any((self.written / name).exists() for name in _OF_A_RUN)

    def find(self, name: str) -> Path:
        """Where to read this file or folder; where it would be written if there is none."""
        own = self.written / name
        return self.shipped / name if not own.exists() and self.is_shipped() else own

    def matching(self, folder: str, pattern: str) -> list[Path]:
        """The files in a folder of the run to read, in the order of names."""
        folders = [self.shipped / folder, self.written / folder] if self.is_shipped() else [self.written / folder]
        found = {path.name: path for place in folders for path in place.glob(pattern)}
        return [found[name] for name in sorted(found)]


def place_of(name: str, root: str | Path | None = None) -> RunPlace:
    """The folders of the run called `name`. Raises UsageError for a bad name."""
    return RunPlace(run_path(name, root), SHIPPED / name)


def run_names(root: str | Path | None = None) -> list[str]:
    """Names of the folders that may be runs: those in the root, and those that come with Moescope."""
    folders = [path for base in (checkpoints_root(root), SHIPPED) if base.is_dir() for path in base.iterdir()]
    return sorted({path.name for path in folders if is_run_name(path.name) and path.is_dir()})
