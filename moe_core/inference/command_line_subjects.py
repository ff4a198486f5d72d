"""What `streamlit run app -- --trace X --model DIR` names, opened once for the server."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moe_core.errors import MoescopeError, UsageError
from moe_core.files import user_path
from moe_core.inference.device import DEVICES, DTYPES
from moe_core.inference.opening_job import OpeningJob, start_opening
from moe_core.inference.subjects import OPENED, Opened, remember_model
from moe_core.routing.opening import kind_of_file

SOON_SECONDS = 1.0
"""What is read within it needs no page that says so."""


@dataclass(frozen=True)
class Named:
    """What the command line names, as far as it is open."""

    first: str | None = None
    """The name of what was given first, of what could be opened."""
    is_opening: bool = False
    """Whether that is still being read."""
    errors: tuple[str, ...] = ()
    """What could not be opened, one line each."""


@dataclass
class _CommandLine:
    """Read once: what was closed in the side bar stays closed."""

    read: tuple[str, ...] | None = None
    opened: list[Opened | OpeningJob] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


_command_line = _CommandLine()
_lock = threading.Lock()


def open_from_command_line(arguments: Sequence[str] | None = None) -> Named:
    """Open what the command line names, at the first call. Recordings go on being read after it.

    `arguments`: the program and its arguments, as in sys.argv.
    """
    given = tuple(sys.argv if arguments is None else arguments)
    if not given or Path(given[0]).name != "streamlit_app.py":
        return Named()  # another program shows the dashboard: these are its own arguments
    with _lock:
        if _command_line.read != given:
            _command_line.read, _command_line.opened, _command_line.errors = given, [], []
            try:
                _open_all(_parse_arguments(given[1:]))
            except UsageError as error:
                _command_line.errors.append(str(error))
            for one in _command_line.opened:
                if isinstance(one, OpeningJob):
                    one.wait(SOON_SECONDS)
        jobs = [one for one in _command_line.opened if isinstance(one, OpeningJob)]
        errors = [str(job.error) for job in jobs if job.error is not None]
        return Named(*_first(_command_line.opened), (*_command_line.errors, *errors))


def _first(opened: Sequence[Opened | OpeningJob]) -> tuple[str | None, bool]:
    """The name of the first that could be opened, or None and whether it may still be."""
    for one in opened:
        if isinstance(one, OpeningJob) and one.is_running:
            return None, True
        found = one.result if isinstance(one, OpeningJob) else one
        if found is not None:
            return found.name, False
    return None, False


def _open_all(wanted: argparse.Namespace) -> None:
    for path in wanted.trace:
        try:
            _command_line.opened.append(_open_file(path))
        except MoescopeError as error:
            _command_line.errors.append(str(error))
    for where in wanted.model:
        try:
            model = OPENED.open_model(
                where, device=wanted.device, dtype=wanted.dtype, trust_remote_code=wanted.trust_remote_code
            )
        except MoescopeError as error:
            _command_line.errors.append(str(error))
            continue
        remember_model(model)
        _command_line.opened.append(model)


def _open_file(path: str) -> Opened | OpeningJob:
    place = user_path(path).resolve()
    if kind_of_file(place) is not None:
        return OPENED.open_file(place)
    return start_opening(repr(place), place.name, lambda progress: OPENED.open_file(place, progress=progress))


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
