"""What was opened lately, on whatever server of this user: a small list that survives a restart.

It holds paths and options, nothing of the files, in a folder that is the user's alone. A damaged list is begun anew.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from moe_core.errors import RunError
from moe_core.files import lock, private_folder
from moe_core.inference.kept_files import Said
from moe_core.runs.checksum import read_typed, with_checksum
from moe_core.runs.files import read_file, write_atomic

FILE = "recently_opened.json"
MOST = 12
"""More are not remembered: what was opened longest ago goes first."""
MOST_BYTES = 2 << 20
"""Of the list; a real one has less than a hundredth of it."""
_in_process = threading.Lock()
Text = Annotated[str, Field(max_length=4096)]


@dataclass(frozen=True)
class Recent:
    """Something that was opened."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    kind: Literal["trace", "counts", "model"]
    shown: Text
    """What its name says after the kind: that of the file, folder or model."""
    place: Text
    """Its path, a model's name, or of an upload the file that was kept of it."""
    opened_at: float
    """Seconds since 1970."""
    is_upload: bool = False
    said: Said = Said()  # noqa: RUF009 - immutable
    device: Text = "auto"
    """Of a model, like its dtype."""
    dtype: Text = "auto"

    def is_gone(self) -> bool:
        """Whether there is nothing at its place any more; of a model's name and of a glob that cannot be told."""
        place = Path(self.place)
        if not place.is_absolute() or "*" in self.place:
            return False
        with suppress(OSError, ValueError):
            return not place.exists()
        return True


@dataclass(frozen=True)
class RecentList:
    """The file."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    opened: Annotated[tuple[Recent, ...], Field(max_length=10 * MOST)]
    """The last opened first."""


_READER = TypeAdapter(RecentList)


def recently_opened() -> tuple[list[Recent], str]:
    """What was opened lately, the last first, and what was wrong with the list, in one line; "" where nothing was."""
    path = private_folder() / FILE
    try:
        found, verified = read_typed(read_file(path, MOST_BYTES), path, _READER, "is no list", "it is begun anew")
    except FileNotFoundError:
        return [], ""
    except RunError:
        return [], "The list of what was opened lately is damaged and begins anew."
    if not verified:
        return [], "The list of what was opened lately has no checksum and begins anew."
    return list(found.opened[:MOST]), ""


def remember(one: Recent) -> None:
    """Put it first. A disk that refuses is no reason to refuse what was opened."""
    with suppress(RunError, OSError), _alone():
        before, _ = recently_opened()
        others = [old for old in before if (old.place, old.said) != (one.place, one.said)]
        _write([one, *others][:MOST])


def forget(*gone: Recent) -> None:
    """Take these off the list, or all of it where none are named."""
    with suppress(RunError, OSError), _alone():
        left = [one for one in recently_opened()[0] if gone and one not in gone]
        _write(left)


def _write(opened: list[Recent]) -> None:
    write_atomic(private_folder() / FILE, with_checksum(asdict(RecentList(tuple(opened)))))


@contextmanager
def _alone() -> Iterator[None]:
    """No other session or server changes the list meanwhile."""
    with _in_process, (private_folder() / f".{FILE}.lock").open("wb") as file:
        with suppress(OSError):  # a file system without locks
            lock(file, wait=True)
        yield
