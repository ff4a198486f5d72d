"""What a command prints: words on stdout, progress on stderr, figures as JSON to a file or alone on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from moe_core.cli.exits import printable
from moe_core.errors import UsageError
from moe_core.json_values import json_safe
from moe_core.progress import Progress, stage_name
from moe_core.words import duration

if TYPE_CHECKING:
    from tqdm import tqdm

JSON_TO_STDOUT = "-"
# Where stderr is no terminal (a log file), a line of progress every so many seconds.
LINE_SECONDS = 5.0


class Output:
    """Where one command's words and figures go.

    `json_target`: None = no figures asked for; "-" = JSON alone on stdout, all words then go to stderr, and so does
    whatever a library prints; else the file to write.
    """

    def __init__(self, json_target: str | None) -> None:
        self._json_target = json_target
        self._stdout: IO[str] = sys.stdout
        if json_target not in (None, JSON_TO_STDOUT):
            check_writable(json_target, "--json")
        self._lines: IO[str] | None = None
        """Where figures go that come one by one."""
        self._redirect = redirect_stdout(sys.stderr) if json_target == JSON_TO_STDOUT else None

    def __enter__(self) -> Output:
        if self._redirect is not None:
            self._redirect.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lines is not None and self._lines is not self._stdout:
            self._lines.close()
        if self._redirect is not None:
            self._redirect.__exit__(kind, value, trace)

    @property
    def json_only(self) -> bool:
        """True when stdout is kept for JSON."""
        return self._json_target == JSON_TO_STDOUT

    def say(self, text: str = "") -> None:
        """A line (or several) for the user."""
        print(printable(text))

    def figures(self, value: Mapping[str, Any] | Sequence[Any]) -> None:
        """Write the figures where --json asked for them; nothing when it did not."""
        if self._json_target is None:
            return
        # ASCII, so that any terminal's encoding carries it; NaN and infinity are no JSON.
        text = json.dumps(json_safe(value), indent=2, allow_nan=False) + "\n"
        if self.json_only:
            self._stdout.write(text)
            self._stdout.flush()
            return
        write_bytes(Path(str(self._json_target)), text.encode())

    def line(self, value: Mapping[str, Any]) -> None:
        """One of many figures, which come one after the other: a line of JSON, at once, so that none is lost."""
        if self._json_target is None:
            return
        if self._lines is None:
            self._lines = self._stdout if self.json_only else _opened_for_lines(Path(self._json_target))
        self._lines.write(json.dumps(json_safe(value), allow_nan=False) + "\n")
        self._lines.flush()


def _opened_for_lines(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w", encoding="utf-8")


def check_writable(path: str | None, option: str) -> None:
    """Refuse early a file that could only fail after minutes of work. Raises UsageError naming the option."""
    if not path or "\0" in path or Path(path).is_dir():
        raise UsageError(f"{option} {path!r} is not a file name; expected one such as out/figures.json")
    parent = Path(path).parent
    if parent.exists() and not parent.is_dir():
        raise UsageError(f"{option} {path!r}: {str(parent)!r} is a file, not a folder; choose another place")


def check_regular(path: str, option: str) -> None:
    """As check_writable, and refuse devices and pipes: a binary file is written beside and renamed onto its target."""
    check_writable(path, option)
    if Path(path).exists() and not Path(path).is_file():
        raise UsageError(f"{option} {path!r} is a device or pipe; expected an ordinary file")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; into devices and pipes directly. Raises OSError or RunError."""
    from moe_core.runs.files import write_atomic

    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned with spaces; the last one is not padded."""
    lines = [tuple(printable(cell).replace("\n", " ") for cell in row) for row in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
    return "\n".join(padded)


@contextmanager
def progress_on_stderr() -> Iterator[Progress]:
    """Yield progress(stage, done, total): a bar with the time left on a terminal, else a line every few seconds."""
    shown = _Bar() if sys.stderr.isatty() else _Lines()
    try:
        yield shown.report
    finally:
        with suppress(OSError, ValueError):
            shown.close()


class _Bar:
    """tqdm, one bar at a time."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._stage = ""

    def report(self, stage: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if self._bar is None or stage_name(stage) != self._stage:
            self.close()
            tqdm.monitor_interval = 0  # no helper thread for a bar that reports often enough
            self._bar = tqdm(total=total, desc=stage, initial=done, file=sys.stderr, leave=False, dynamic_ncols=True)
            self._stage = stage_name(stage)
        self._bar.set_description(stage, refresh=False)
        self._bar.total = total
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._bar.refresh()  # tqdm redraws by the clock and may pass over the last report of a stage

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class _Lines:
    """A line of text every few seconds; a stage that is quicker says nothing."""

    def __init__(self) -> None:
        self._stage = ""
        self._began_at, self._began_done = 0.0, 0
        self._said_at: float | None = None

    def report(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage_name(stage) != self._stage:
            self._stage, self._began_at, self._began_done = stage_name(stage), now, done
        if self._said_at is None:
            self._said_at = now
        if now - self._said_at < LINE_SECONDS:
            return
        self._said_at = now
        advanced = done - self._began_done
        left = (now - self._began_at) * (total - done) / advanced if advanced > 0 else None
        time_left = f", about {duration(left)} left" if left is not None else ""
        print(f"{stage}: {done:,} of {total:,}{time_left}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing stays open."""
