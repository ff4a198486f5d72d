"""Every benchmark there is: ours, which importing their files registers, and those of the user's plugins."""

from __future__ import annotations

import difflib
import runpy
import traceback
from collections.abc import Sequence
from pathlib import Path

from moe_core.errors import UsageError
from moe_core.evaluation.tasks import choices, known_benchmarks, predicting, written  # noqa: F401
from moe_core.evaluation.tasks.registry import REGISTERED, Benchmark, reading_plugin

ORDER = (
    "perplexity",
    "token_accuracy",
    "text",
    "generation",
    "code_syntax",
    "letter_counting",
    "arithmetic",
    "arc",
    "mmlu",
    "gsm8k",
)
"""In which they are run and reported."""


def registered() -> dict[str, Benchmark]:
    """All benchmarks, ours first, in the order of the report."""
    return {name: REGISTERED[name] for name in ORDER} | REGISTERED


def load_plugin(path: str | Path) -> list[str]:
    """Run a Python file of the user's that registers benchmarks; their names. Raises UsageError in one line."""
    if not Path(path).is_file():
        raise UsageError(f"no file at --plugin {str(path)!r}; expected a Python file that registers a benchmark")
    before = registered()
    try:
        with reading_plugin(str(path)):
            runpy.run_path(str(path))
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"--plugin {str(path)!r} failed: {describe(error, str(path))}") from None
    names = [name for name, found in REGISTERED.items() if found.plugin == str(path) or name not in before]
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
