"""Every term the product uses, once: one line, formula, chance or target value, source. Pages show it on hover."""

from moe_core.routing.glossary.basics import BASICS
from moe_core.routing.glossary.certainty import CERTAINTY
from moe_core.routing.glossary.relations import RELATIONS
from moe_core.routing.glossary.term import Term

GLOSSARY: dict[str, Term] = {term.name: term for term in (*BASICS, *RELATIONS, *CERTAINTY)}
"""Terms by name, in the order a reader would want them."""

__all__ = ["GLOSSARY", "Term"]
