"""What the generator yields: one text with its domain, its source and its split."""

from typing import NamedTuple

DOMAINS = ("finance", "legal", "code", "general")
PROSE_DOMAINS = ("finance", "legal", "general")
SPLITS = ("train", "validation", "unseen")
TUNING = "tuning"
"""A split more, for those who choose between trainings: written like `validation`, and written on demand alone."""


class Row(NamedTuple):
    """One generated text. Its source, "domain/split/index", is its place in the corpus and occurs once."""

    text: str
    domain: str
    source: str
    split: str
