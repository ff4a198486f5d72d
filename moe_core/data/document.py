"""The unit of data: one text with the domain, source and split it belongs to."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """One text. `source` names where it came from; texts of one source never part between splits."""

    text: str
    domain: str
    source: str
    split: str
    """"train", "validation" or "unseen", in a comparison also "tuning"; empty before the text is split."""
