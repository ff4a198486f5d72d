"""Which text goes through a model: a held-out document of each domain, several of one, or what is typed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from app import loaders, state
from app.components.own_text import own_text
from app.components.page import plain
from moe_core.errors import UsageError
from moe_core.inference.passages import TOKEN_LIMIT, Passage, examples
from moe_core.inference.subjects import Live

ALL, OWN = "One of each domain", "Your own text"
OWN_TEXT = """The court ordered the bank to repay the loan of 12,500 euros by 31 March.

def total(prices):
    return sum(prices)

It rained all night, and in the morning the garden was green again.
"""
DOCUMENTS_OF_ONE_DOMAIN = 3
EXAMPLE_TOKENS = 600
"""Tokens of all example documents together: they fit the view without scrolling far."""


@dataclass(frozen=True)
class TextChoice:
    """ALL, OWN or a domain; and what is typed, for OWN."""

    source: str
    typed: str = ""

    @property
    def limit(self) -> int:
        """Tokens that are read."""
        return TOKEN_LIMIT if self.source == OWN else EXAMPLE_TOKENS

    @property
    def digest(self) -> str:
        """Another for another text."""
        return hashlib.sha256(repr((self.source, self.typed)).encode()).hexdigest()

    def passages(self, subject: Live, number: int = 0) -> list[Passage]:
        """The text itself; the next documents with the next `number`. Raises UsageError where there is none."""
        if self.source == OWN:
            if not self.typed:
                raise UsageError("there is no text yet; type or paste some, then press Ctrl+Enter")
            return [Passage("your text", self.typed)]
        domains = loaders.domains(subject) if self.source == ALL else [self.source]
        each = 1 if self.source == ALL else DOCUMENTS_OF_ONE_DOMAIN
        if found := examples(loaders.example_text(subject), domains, number, each):
            return found
        raise UsageError(f"there is no held-out text of {self.source!r}; choose another, or {OWN!r}")


def pick_source(domains: Sequence[str], key: str) -> str:
    """Draw the choice of where text comes from."""
    options = [ALL, *domains, OWN] if len(domains) > 1 else [*domains, OWN]
    state.preset(key, options, options[0], plain)  # another run may have other domains
    return state.present(
        st.segmented_control("Text", options, required=True, key=key, bind="query-params", format_func=plain, wrap=True)
    )


def type_text(key: str, link: str, *, height: int, text: str = OWN_TEXT) -> str:
    """Draw the field for text of one's own, with `text` in it at first; see own_text."""
    about = f"The first {TOKEN_LIMIT:,} tokens are read. The text stays on this computer."
    return own_text("Text", key, link, text, height=height, about=about)
