"""Other names for the identifiers of Python code: the same program in other words, for two views of one document."""

from __future__ import annotations

import ast
import io
import keyword
import tokenize
import warnings

import numpy as np

WORDS = (
    "alpha", "amount", "batch", "bound", "cell", "chunk", "cursor", "delta", "depth", "edge", "field", "flag", "frame",
    "gap", "grid", "group", "index", "inner", "label", "left", "level", "line", "mark", "node", "outer", "pair", "part",
    "path", "place", "point", "pool", "queue", "range_", "rank", "ratio", "right", "root", "row", "scale", "share",
    "shift", "side", "slot", "span", "stack", "state", "step", "table", "target", "term", "total", "track", "unit",
    "width", "zone",
)  # fmt: skip
"""New names are one or two of these."""


def rename_identifiers(code: str, rng: np.random.Generator) -> str:
    """`code` with the names that it defines itself (functions, classes, arguments, variables) changed, each everywhere
    alike, and attributes of these names too. Text that is no Python, or would be none afterwards, comes back as it is.
    """
    tree = _parsed(code)
    if tree is None:
        return code
    own = sorted(_defined_names(tree))
    new_of = dict(zip(own, _new_names(len(own), set(_all_names(tree)) | set(own), rng), strict=True))
    pieces: list[str] = []
    lines = code.splitlines(keepends=True)
    row, column = 1, 0
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type != tokenize.NAME or token.string not in new_of:
            continue
        (line, start), end = token.start, token.end[1]
        pieces += [*_between(lines, (row, column), (line, start)), new_of[token.string]]
        row, column = line, end
    pieces += _between(lines, (row, column), (len(lines) + 1, 0))
    renamed = "".join(pieces)
    return code if _parsed(renamed) is None else renamed


def _parsed(code: str) -> ast.AST | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes in somebody's strings
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _defined_names(tree: ast.AST) -> set[str]:
    """Names that the code binds and that mean nothing outside of it; dunder names and `self` have a meaning."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    imported = {
        (alias.asname or alias.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    # Within an f-string they are part of a string for Python 3.11's tokenizer, which then could not change them.
    in_strings = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
        for name in _all_names(part)
    }
    kept = imported | in_strings | {"self", "cls", "_"}
    return {name for name in names - kept if not name.startswith("__")}


def _all_names(tree: ast.AST) -> set[str]:
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return names | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def _new_names(count: int, taken: set[str], rng: np.random.Generator) -> list[str]:
    names: list[str] = []
    while len(names) < count:
        words = rng.choice(len(WORDS), size=1 + int(rng.integers(2)))
        name = "_".join(WORDS[int(word)].rstrip("_") for word in words)
        if len(names) > len(WORDS):
            name += f"_{len(names)}"
        if name not in taken and not keyword.iskeyword(name):
            taken.add(name)
            names.append(name)
    return names


def _between(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> list[str]:
    """The text from one (row, column) to before another; rows count from 1."""
    (row, column), (last, stop) = start, end
    if row == last:
        return [lines[row - 1][column:stop]] if row <= len(lines) else []
    parts = [lines[row - 1][column:], *lines[row : last - 1]]
    return [*parts, lines[last - 1][:stop]] if last <= len(lines) else parts
