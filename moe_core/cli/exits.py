"""How a command ends: its exit code, and one line on stderr when it failed. Never a traceback for a user's error."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from moe_core.errors import MoescopeError

FAILED = 1
MOST_CHARACTERS = 1_200
"""Of an error's line."""
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
DEBUG_VARIABLE = "MOESCOPE_DEBUG"
# What torch says, in a RuntimeError, when the operating system refuses memory.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


class Terminated(BaseException):
    """SIGTERM came while no trainer was there to catch it; unwinds like Ctrl+C so that temporary files go."""


def guarded(call: Callable[[], int]) -> int:
    """Run `call` and return its exit code; an exception becomes one line on stderr and the code that stands for it."""
    _print_whatever_comes()
    try:
        with _raising_on_sigterm():
            try:
                code = call()
            except SystemExit as end:  # argparse after --help
                code = end.code if isinstance(end.code, int) else FAILED
            sys.stdout.flush()
            return code
    except BrokenPipeError:  # the reader has seen enough, as in `python main.py runs | head -1`
        _silence_stdout()
        return 0
    except KeyboardInterrupt:
        _print_error("interrupted")
        return INTERRUPTED
    except Terminated:
        _print_error("terminated")
        return TERMINATED
    except MoescopeError as error:
        _print_error(f"error: {error}")
        return error.exit_code
    except OSError as error:
        _silence_stdout()
        _print_error(f"error: {_of_operating_system(error)}")
        return FAILED
    except MemoryError:
        _print_error(f"error: {_of_memory()}")
        return FAILED
    except Exception as error:
        if isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY):
            _print_error(f"error: {_of_memory()}")
        else:
            _print_error(f"error: {_bug(error)}")
            if os.environ.get(DEBUG_VARIABLE):
                traceback.print_exc()
        return FAILED


def one_line(text: str) -> str:
    """`text` without line breaks and with control characters (a terminal would obey them) made visible."""
    return printable(" ".join(text.split()))


def shortened(line: str) -> str:
    """A line that a name of thousands of characters made long, without its middle."""
    half = MOST_CHARACTERS // 2
    return line if len(line) <= MOST_CHARACTERS else f"{line[:half]} ... {line[-half:]}"


def printable(text: str) -> str:
    """`text` with control characters other than line feed and tab written as codes, e.g. \\x1b."""
    return "".join(c if c in "\n\t" or not _is_control(c) else c.encode("unicode_escape").decode() for c in text)


def as_one_line(text: str) -> str:
    """`text` in one line from which it can be told again: line breaks as \\n, other control characters as codes."""
    return printable(text.replace("\\", "\\\\").replace("\n", "\\n"))


def _is_control(character: str) -> bool:
    return ord(character) < 32 or 127 <= ord(character) < 160


def _print_error(line: str) -> None:
    with suppress(OSError, ValueError):  # nobody may be listening any more
        print(shortened(one_line(line)), file=sys.stderr, flush=True)


def _of_operating_system(error: OSError) -> str:
    where = f" {error.filename!r}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"no space left to write{where or ' the output'}; free some disk space or choose another place"
    return f"cannot use{where or ' a file'}: {error.strerror or error}; check that it exists and its permissions"


def _of_memory() -> str:
    return (
        "out of memory; lower training.batch_size or the model's size (model.dim, model.num_experts), or give less text"
    )


def _bug(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else ""
    return (
        f"unexpected {type(error).__name__}{place}: {str(error)[:300]}; this is a bug in Moescope: "
        f"set {DEBUG_VARIABLE}=1 for the traceback"
    )


def _print_whatever_comes() -> None:
    """Let a terminal that knows ASCII only show other characters as codes instead of failing on them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _silence_stdout() -> None:
    """If stdout takes no more, send the rest of its buffer nowhere: the interpreter would fail on it again at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)


@contextmanager
def _raising_on_sigterm() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature signal calls
        raise Terminated

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
