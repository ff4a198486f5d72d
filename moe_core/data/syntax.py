"""Syntax trees of code: the node that each place of a text stands in. By tree-sitter, which also reads what is broken.

Languages are named in one table; one more takes its grammar in requirements-code.txt and a line here.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from moe_core.errors import UsageError

if TYPE_CHECKING:
    from tree_sitter import Parser

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
    A piece begins behind its leading white space, which belongs to no word; one of white space alone is WHITE_SPACE, an
    empty one "". Keywords and punctuation have no named node of their own: theirs is the node that they are part of.
    """
    root = parser_of(language).parse(b"".join(pieces)).root_node
    found, place = list[str](), 0
    for piece in pieces:
        inner = len(piece) - len(piece.lstrip(_SPACE))
        if inner == len(piece):
            found.append(WHITE_SPACE if piece else "")
        else:
            node = root.named_descendant_for_byte_range(place + inner, place + inner + 1)
            found.append(root.type if node is None else node.type)
        place += len(piece)
    return found
