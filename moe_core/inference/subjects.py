"""What the dashboard can be opened on besides a run: routing in a file, or a model of the transformers library.

Everything that was opened on this server is offered to every session under a short name. The name stands in the URL,
the path does not: a link can only choose what somebody opened here.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from moe_core.errors import MoescopeError, UsageError
from moe_core.files import user_path
from moe_core.inference.device import DEVICES, DTYPES
from moe_core.progress import Progress, silent
from moe_core.routing.conversions import Holds
from moe_core.runs import RunFolder

MAX_OPENED = 16
"""More are not kept: what was opened longest ago goes first."""


@dataclass(frozen=True)
class RoutingFile:
    """Routing in a file: a trace or counts of ours, or a recording, which was converted into one of these."""

    name: str
    """As in the side bar and the URL: "trace text.parquet", "counts imatrix.gguf". No run has such a name, as those
    have no spaces."""
    path: Path
    """The trace or the counts, a file of ours."""
    holds: Holds = "tokens"
    recording: Path | None = None
    """What `path` was converted from; None where it is what was opened."""

    @property
    def opened(self) -> Path:
        """What was opened, as a user knows it."""
        return self.recording or self.path


@dataclass(frozen=True)
class ForeignModel:
    """A model that instruments.huggingface can load."""

    name: str
    """As in the side bar and the URL: "model mixtral"."""
    where: str
    """Its folder, or the name under which the library finds it."""
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False
    """Only from the command line: a page that anybody on this computer may open never starts foreign code."""


Opened = RoutingFile | ForeignModel
Subject = RunFolder | Opened
"""Anything that a page can show."""
Live = RunFolder | ForeignModel
"""A subject that can read and write text."""


@dataclass
class Registry:
    """What was opened on this server, in the order of opening."""

    _items: dict[str, Opened] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def all(self) -> list[Opened]:
        """The last opened first."""
        with self._lock:
            return list(reversed(self._items.values()))

    def find(self, name: str) -> Opened | None:
        """What is open under this name."""
        with self._lock:
            return self._items.get(name)

    def open_file(self, path: str | Path, shown: str | None = None, *, progress: Progress = silent) -> RoutingFile:
        """Offer the routing at `path`, whatever routing.open_routing reads, under the file's own name or `shown`; a
        recording is converted first. Raises TraceError when it is none."""
        from moe_core.routing.conversions import file_of_ours

        place = user_path(path).resolve()
        ours = file_of_ours(place, progress)
        with self._lock:
            known = next((one for one in self._items.values() if getattr(one, "opened", None) == place), None)
            kind = "counts" if ours.holds == "counts" else "trace"
            name = known.name if known is not None else self._free_name(f"{kind} {shown or place.name}")
            found = RoutingFile(name, ours.path, ours.holds, None if ours.path == place else place)
            self._keep_opened(found)
        return found

    def open_model(
        self, where: str, *, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False
    ) -> ForeignModel:
        """Offer the model in this folder or of this name; it is loaded when a page needs it. Raises UsageError."""
        folder = user_path(where)
        if folder.exists() and not (folder / "config.json").is_file():
            raise UsageError(f"{where!r} is no model: it has no config.json; expected a folder with one, or a trace")
        place = str(folder.resolve()) if folder.exists() else where
        with self._lock:
            known = next((one for one in self._items.values() if getattr(one, "where", None) == place), None)
            found = ForeignModel(
                known.name if known else self._free_name(f"model {Path(place).name}"),
                place,
                device,
                dtype,
                trust_remote_code,
            )
            self._keep_opened(found)
        return found

    def close(self, name: str) -> None:
        """Offer it no longer; the file stays."""
        with self._lock:
            self._items.pop(name, None)

    def _free_name(self, name: str) -> str:
        """The name, with a number where another file has it already."""
        number, free = 1, name
        while free in self._items:
            number += 1
            free = f"{name} ({number})"
        return free

    def _keep_opened(self, item: Opened) -> None:
        self._items.pop(item.name, None)
        self._items[item.name] = item
        while len(self._items) > MAX_OPENED:
            self._items.pop(next(iter(self._items)))


OPENED = Registry()
"""Everything that was opened on this server."""


@dataclass
class _CommandLine:
    """Read once: what was closed in the side bar stays closed."""

    read: tuple[str, ...] | None = None
    first: str | None = None
    errors: list[str] = field(default_factory=list)


_command_line = _CommandLine()
_lock = threading.Lock()


def open_from_command_line(arguments: Sequence[str] | None = None) -> tuple[str | None, list[str]]:
    """Open what `streamlit run app -- --trace X.parquet --model DIR` names, once.

    `arguments`: the program and its arguments, as in sys.argv. Returns the name of what was given first, or None, and
    what could not be opened, one line each.
    """
    given = tuple(sys.argv if arguments is None else arguments)
    if not given or Path(given[0]).name != "streamlit_app.py":
        return None, []  # another program shows the dashboard: these are its own arguments
    with _lock:
        if _command_line.read != given:
            _command_line.read, _command_line.first, _command_line.errors = given, None, []
            try:
                _open_all(_parse_arguments(given[1:]))
            except UsageError as error:
                _command_line.errors.append(str(error))
        return _command_line.first, list(_command_line.errors)


def _open_all(wanted: argparse.Namespace) -> None:
    how = {"device": wanted.device, "dtype": wanted.dtype, "trust_remote_code": wanted.trust_remote_code}
    openers: list[Callable[[], Opened]] = [partial(OPENED.open_file, path) for path in wanted.trace]
    openers += [partial(OPENED.open_model, where, **how) for where in wanted.model]
    for opener in openers:
        try:
            name = opener().name
            _command_line.first = _command_line.first or name
        except MoescopeError as error:
            _command_line.errors.append(str(error))


def _parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Raises UsageError."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--trace", action="append", default=[])
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    parser.add_argument("--trust-remote-code", action="store_true")
    expected = "expected --trace FILE, or --model DIR with --device, --dtype or --trust-remote-code"
    try:
        known, unknown = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise UsageError(f"the dashboard cannot read its arguments: {error}; {expected}") from None
    if unknown:
        raise UsageError(f"argument {unknown[0]!r} is unknown to the dashboard; {expected}")
    return known
