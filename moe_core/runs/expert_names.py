"""Names that people give to experts ("currency amounts"), in a file of their own.

A name is one short line of plain text. It comes from outside, so who shows it escapes it as any other text. The file is
replaced as a whole under a lock, so that two browsers that name two experts at once keep both names.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter

from moe_core.errors import RunError, UsageError
from moe_core.files import lock, private_folder
from moe_core.runs.checksum import read_typed, with_checksum
from moe_core.runs.files import read_file, translate_os_errors, write_atomic

FILE = "expert_names.json"
MOST_CHARACTERS = 40
MOST_NAMES = 65_536
MOST_BYTES = 32 << 20
"""Of the file; MOST_NAMES of the longest names have a third of it."""
_in_process = threading.Lock()


def checked_name(text: str) -> str:
    """The name as it is kept, white space at its ends taken off and a single space within; "" is no name.

    Raises UsageError for one of more than MOST_CHARACTERS, and for characters that cannot be seen or turn the direction
    of writing.
    """
    name = " ".join(text.split())
    if (hidden := next((sign for sign in name if not sign.isprintable()), None)) is not None:
        raise UsageError(f"the name has the invisible character U+{ord(hidden):04X}; expected plain text of one line")
    if len(name) > MOST_CHARACTERS:
        raise UsageError(f"the name has {len(name)} characters; expected at most {MOST_CHARACTERS}, shorten it")
    return name


def _as_kept(name: str) -> str:
    """Raises ValueError for what checked_name would not have written."""
    try:
        fine = checked_name(name) == name != ""
    except UsageError as error:
        raise ValueError(str(error)) from None
    if not fine:
        raise ValueError("expected a name without white space at its ends")
    return name


Number = Annotated[int, Field(ge=0, le=32_767)]


@dataclass(frozen=True)
class NamedExpert:
    """One expert and its name."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    layer: Number
    """Counted over all layers, as everywhere."""
    expert: Number
    name: Annotated[str, AfterValidator(_as_kept)]


@dataclass(frozen=True)
class ExpertNames:
    """All names of a run's or a file's experts."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    experts: Annotated[tuple[NamedExpert, ...], Field(max_length=MOST_NAMES)] = ()

    @cached_property
    def by_expert(self) -> dict[tuple[int, int], str]:
        """Names by (layer, expert)."""
        return {(one.layer, one.expert): one.name for one in self.experts}

    @cached_property
    def by_layer(self) -> dict[int, dict[int, str]]:
        """The same by layer, then expert."""
        found: dict[int, dict[int, str]] = {}
        for one in self.experts:
            found.setdefault(one.layer, {})[one.expert] = one.name
        return found

    def name(self, layer: int, expert: int) -> str:
        """The expert's name, or ""."""
        return self.by_expert.get((layer, expert), "")

    def label(self, layer: int, expert: int) -> str:
        """ "3 · currency amounts", or "3" where it has no name."""
        return expert_label(expert, self.name(layer, expert))

    def renamed(self, layer: int, expert: int, name: str) -> ExpertNames:
        """With this name for the expert, or without one where it is "". Raises UsageError for a bad name."""
        names = {**self.by_expert, (layer, expert): checked_name(name)}
        if len(names) > MOST_NAMES:
            raise UsageError(f"there are {MOST_NAMES:,} names already; take one away first")
        return ExpertNames(tuple(NamedExpert(*place, given) for place, given in sorted(names.items()) if given))


NO_NAMES = ExpertNames()
_READER = TypeAdapter(ExpertNames)


def expert_label(expert: int, name: str) -> str:
    """How an expert with this name, or with "", is called where its layer is known."""
    return f"{expert} · {name}" if name else str(expert)


def read_names(path: Path) -> tuple[ExpertNames, str]:
    """The names in the file, and what is wrong with it, in one line; "" where nothing is.

    A damaged file stays as it is, and there are no names then.
    """
    try:
        remedy = "restore a copy; a name that is given now begins a new file and keeps this one beside it"
        return read_typed(read_file(path, MOST_BYTES), path, _READER, "holds no names of experts", remedy)[0], ""
    except FileNotFoundError:
        return NO_NAMES, ""
    except RunError as error:
        return NO_NAMES, str(error)


def write_name(path: Path, layer: int, expert: int, name: str) -> ExpertNames:
    """Give the expert this name, "" takes it away, and return all names; those that others gave meanwhile stay.

    A damaged file is kept under another name. Raises UsageError for a bad name, RunError when the disk refuses.
    """
    with _alone(path):
        names, wrong = read_names(path)
        names = names.renamed(layer, expert, name)
        if wrong:
            with translate_os_errors(path):
                path.rename(_free_name(path))
        write_atomic(path, with_checksum(asdict(names)))
    return names


def _free_name(path: Path) -> Path:
    number = 1
    while (free := path.with_name(f"{path.stem}.damaged-{number}{path.suffix}")).exists():
        number += 1
    return free


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other session or server of this user changes the file meanwhile."""
    key = hashlib.sha256(str(path.resolve()).encode(errors="surrogateescape")).hexdigest()[:32]
    with _in_process, (private_folder("expert_names") / f".{key}.lock").open("wb") as file:
        with suppress(OSError):  # a file system without locks
            lock(file, wait=True)
        yield
