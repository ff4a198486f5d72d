"""The unit of data: one text with the domain, source and split it belongs to."""

from dataclasses import dataclass

DOMAINS = ("finance", "legal", "code", "general")
PROSE_DOMAINS = ("finance", "legal", "general")
SPLITS = ("train", "validation", "unseen")


@dataclass(frozen=True)
class Document:
    """One text. `source` names where it came from; texts of one source never part between splits."""

    text: str
    domain: str
    source: str
    split: str
