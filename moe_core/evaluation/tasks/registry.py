"""The benchmarks by name. A custom one is a registered function, in a file given with --plugin:

from moe_core.evaluation.tasks import Context, Outcome, benchmark, of_questions

@benchmark("vowels", "Does it finish 'a e i o' with u?")
def vowels(context: Context) -> Outcome: ...
"""

from __future__ import annotations

import difflib
import runpy
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moe_core.errors import UsageError

if TYPE_CHECKING:
    from moe_core.evaluation.tasks.context import Context, Outcome

    Function = Callable[[Context], Outcome]


@dataclass(frozen=True)
class Benchmark:
    """A registered function and what it answers."""

    name: str
    asks: str
    """One line."""
    function: Function
    plugin: str | None
    """The file it came from; None = ours."""


_REGISTERED: dict[str, Benchmark] = {}
_reading: str | None = None
"""The plugin that is being read."""


def benchmark(name: str, asks: str) -> Callable[[Function], Function]:
    """Register a function as a benchmark. Raises UsageError for a name that is taken or cannot be given to --tasks."""
    if not name.replace("_", "").isalnum():
        raise UsageError(f"benchmark name {name!r} is not allowed; expected letters, digits and underscores")
    if name in _REGISTERED and _REGISTERED[name].plugin != _reading:
        raise UsageError(f"benchmark name {name!r} is taken; choose another one")

    def register(function: Function) -> Function:
        _REGISTERED[name] = Benchmark(name, asks, function, _reading)
        return function

    return register


def registered() -> dict[str, Benchmark]:
    """All benchmarks, ours first, in the order of the report."""
    from moe_core.evaluation.tasks.tasks import ORDER

    return {name: _REGISTERED[name] for name in ORDER} | _REGISTERED


def load_plugin(path: str | Path) -> list[str]:
    """Run a Python file of the user's that registers benchmarks; their names. Raises UsageError in one line."""
    global _reading
    if not Path(path).is_file():
        raise UsageError(f"no file at --plugin {str(path)!r}; expected a Python file that registers a benchmark")
    before = registered()
    _reading = str(path)
    try:
        runpy.run_path(str(path))
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"--plugin {str(path)!r} failed: {describe(error, str(path))}") from None
    finally:
        _reading = None
    names = [name for name, found in _REGISTERED.items() if found.plugin == str(path) or name not in before]
    if not names:
        raise UsageError(f"--plugin {str(path)!r} registers no benchmark; expected a function under @benchmark(...)")
    return names


def select(names: Sequence[str] | None) -> list[Benchmark]:
    """The benchmarks of these names in the order of the report; None = all. Raises UsageError naming an unknown one."""
    known = registered()
    for name in names or ():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}" if near else f"expected some of {', '.join(known)}"
            raise UsageError(f"unknown task {name[:60]!r}; {hint}")
    return [found for name, found in known.items() if names is None or name in names]


def describe(error: BaseException, path: str) -> str:
    """An error of somebody else's code in one line, with the place in their file."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    number = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    place = f" (line {number})" if number else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300] + place
