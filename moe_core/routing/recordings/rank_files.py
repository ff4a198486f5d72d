"""The files of one recording that lie side by side: one for each rank of a run of several processes."""

from __future__ import annotations

import re
from pathlib import Path

from moe_core.errors import TraceError

MAX_FILES = 100_000


def rank_files(path: Path, pattern: str) -> list[Path]:
    """The files at `path` in the order of the numbers in their names: a file, a folder's that fit `pattern`, or a glob.

    Raises TraceError where there is none.
    """
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [file for file in path.glob(pattern) if file.is_file()]
        expected = f"no file {pattern!r} in the folder {str(path)!r}"
    else:
        start = Path(path.anchor)
        found = [file for file in start.glob(str(path.relative_to(start))) if file.is_file()]
        expected = f"no file at {str(path)!r}"
    if not found:
        raise TraceError(f"{expected}; expected recorded routing, see docs/trace-format.md")
    if len(found) > MAX_FILES:
        raise TraceError(f"{len(found):,} files at {str(path)!r}; expected {MAX_FILES:,} at most")
    return sorted(found, key=_numbers_in_order)


def _numbers_in_order(path: Path) -> list[tuple[str, int]]:
    """So that rank10 comes after rank2."""
    pairs = re.findall(r"(\D*)(\d*)", path.name)
    return [(text, int(digits) if digits else -1) for text, digits in pairs]
