"""Syntax trees of code: the node that each place of a text stands in. By tree-sitter, which also reads what is broken.

Languages are named in one table; one more takes its grammar in requirements-code.txt and a line here.
"""

from __future__ import annotations

import importlib
from codecs import BOM_UTF8
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from moe_core.errors import UsageError

if TYPE_CHECKING:
    from tree_sitter import Parser, Tree

LANGUAGES = {"python": "tree_sitter_python", "javascript": "tree_sitter_javascript", "rust": "tree_sitter_rust"}
"""Each language and the package of its grammar."""
LANGUAGE_OF_DOMAIN = {
    **{name: name for name in LANGUAGES},
    "code": "python",
    "py": "python",
    "js": "javascript",
    "rs": "rust",
}
"""What the text of a domain of this name is taken for; `code` is what data_gen writes."""
NODE_TYPE = "node type"
"""What labels by syntax are called."""
WHITE_SPACE = "white space"
"""Label of a token of nothing else: it stands between nodes."""
ERROR = "ERROR"
"""Type of the node that holds what the grammar cannot read."""
_SPACE = b" \t\r\n\f\v"


@cache
def parser_of(language: str) -> Parser:
    """The parser of one of LANGUAGES. Raises UsageError for another one, or where tree-sitter is missing."""
    if language not in LANGUAGES:
        raise UsageError(f"there is no grammar of {language!r}; expected one of {', '.join(LANGUAGES)}")
    try:
        from tree_sitter import Language, Parser

        grammar = importlib.import_module(LANGUAGES[language])
    except ImportError as error:
        raise UsageError(
            f"syntax trees of {language} need the library {error.name}; install it: pip install -r "
            "requirements-code.txt in a checkout, else pip install 'moescope[code]'"
        ) from None
    return Parser(Language(grammar.language()))


def node_types(pieces: Sequence[bytes], language: str) -> list[str]:
    """The type of the smallest named node that each piece of a text begins in.

    `pieces` are the UTF-8 bytes of consecutive tokens, perhaps of part of a character; together they are the text.
    A piece begins behind its leading white space, which belongs to no word, and behind a byte order mark at the text's
    beginning; one of nothing else is WHITE_SPACE, an empty one "". Keywords and punctuation have no named node of their
    own: theirs is the node that they are part of.
    """
    text = b"".join(pieces)
    places, types = _innermost(parser_of(language).parse(text))
    mark = len(BOM_UTF8) if text.startswith(BOM_UTF8) else 0
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    inner = np.array(
        [
            len(piece) - len(piece[max(mark - start, 0) :].lstrip(_SPACE))
            for piece, start in zip(pieces, starts.tolist(), strict=True)
        ],
        dtype=np.int64,
    )
    nodes = np.searchsorted(np.array(places), starts + inner, side="right") - 1
    return [
        types[node] if skipped < length else WHITE_SPACE if length else ""
        for node, skipped, length in zip(nodes.tolist(), inner.tolist(), lengths.tolist(), strict=True)
    ]


def _innermost(tree: Tree) -> tuple[list[int], list[str]]:
    """(places in bytes, ascending, the type of the innermost named node from each on); of equal places the last counts.

    One walk over the tree: a search from the root for each token takes time by the depth, minutes where code is nested
    ten thousand deep.
    """
    cursor = tree.walk()
    places, types, above = [0], [tree.root_node.type], [tree.root_node.type]
    while True:
        node = cursor.node
        assert node is not None  # only a cursor of no tree has none
        name = node.type if node.is_named else above[-1]
        places.append(node.start_byte)
        types.append(name)
        if cursor.goto_first_child():
            above.append(name)
            continue
        while True:
            places.append(node.end_byte)
            types.append(above[-1])
            if cursor.goto_next_sibling():
                break
            if not cursor.goto_parent():
                return places, types
            above.pop()
            node = cursor.node
            assert node is not None
