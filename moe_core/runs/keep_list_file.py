"""A keep list as a JSON file: written by `prune --list`, and given back by `prune --keep-list`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from moe_core.errors import UsageError, first_fault
from moe_core.json_values import json_safe
from moe_core.routing.measures.keep_list import KeepList
from moe_core.runs.files import write_atomic

FORMAT = "moescope keep list 1"
LARGEST = 64 * 2**20
"""Bytes: of 100 layers of 4,096 experts it has fewer."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False)

    format: str
    of: str
    list: KeepList


def write_keep_list(path: Path, found: KeepList, of: str) -> None:
    """Write the list; `of` names for people what it was made of. Raises OSError."""
    tree = {"format": FORMAT, "of": of, "list": asdict(found)}
    write_atomic(path, (json.dumps(json_safe(tree), indent=1) + "\n").encode())


def read_keep_list(path: Path) -> KeepList:
    """The list in a file. Raises UsageError for a file that is missing, too large, or holds no such list."""
    try:
        if path.stat().st_size > LARGEST:
            raise UsageError(f"--keep-list {str(path)!r} has more than {LARGEST:,} bytes; expected a keep list")
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read --keep-list {str(path)!r}: {error.strerror or error}") from None
    try:
        file = _File.model_validate_json(content)
    except ValidationError as error:
        fault = first_fault(error)
        raise UsageError(
            f"--keep-list {str(path)!r} is no keep list ({fault.key or 'the file'}: {fault.message}); expected a file "
            "that `prune --list` wrote"
        ) from None
    if file.format != FORMAT:
        raise UsageError(f"--keep-list {str(path)!r} has format {file.format!r}; expected {FORMAT!r}")
    return file.list
