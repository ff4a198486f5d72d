"""Whether text is Python, or could become it. Read by Python's own parser, never executed."""

from __future__ import annotations

import ast
import warnings

_ALLOW_INCOMPLETE = 0x4000
"""CPython's PyCF_ALLOW_INCOMPLETE_INPUT, as codeop uses it: text that merely stops is told apart from an error."""


def whole_lines(text: str, ended: bool) -> str:
    """Without the unfinished last line, unless the text has ended there."""
    return text if ended else text[: text.rfind("\n") + 1]


def parses(code: str) -> bool:
    """True if ast.parse takes it. Blank text is no code."""
    return bool(code.strip()) and _syntax_error(code, 0) is None


def correct_so_far(code: str) -> bool:
    """True if it is valid, or would be if it went on: what is open may still be closed."""
    return bool(code.strip()) and _syntax_error(code, _ALLOW_INCOMPLETE) in (None, "incomplete input")


def _syntax_error(code: str, flags: int) -> str | None:
    """What Python's parser says; None if nothing. The flag ONLY_AST stops before anything could be executed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes and the like are no errors
            compile(code, "<generated>", "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # NUL, or too deeply nested
        return getattr(error, "msg", None) or str(error)
    return None
