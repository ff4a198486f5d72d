"""Held-out text whose routing is shown: of each document the beginning, as certainty is counted in documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from moe_core.data.document import Document
from moe_core.data.splits import HELD_OUT_SPLITS
from moe_core.inference.protocol import LanguageModel, Loaded
from moe_core.inference.tracing import trace_documents
from moe_core.progress import Progress
from moe_core.routing import RoutingTrace

if TYPE_CHECKING:
    from moe_core.runs.folder import RunFolder

TOKENS_PER_DOMAIN = 4096
"""Read at most: some 25 documents of each domain, enough for a verdict, seconds of a small model's time."""
_CHARACTERS = 600


def beginnings(documents: Sequence[Document]) -> list[Document]:
    """The first characters of each document."""
    return [replace(document, text=document.text[:_CHARACTERS]) for document in documents]


def trace_held_out(loaded: Loaded | LanguageModel, run: RunFolder, progress: Progress | None = None) -> RoutingTrace:
    """The routing of beginnings of what `run` was not trained on, of both splits, by this model: its own or another.

    Raises UsageError where the run keeps no such text, RunError where it cannot be read.
    """
    documents = beginnings([document for split in HELD_OUT_SPLITS for document in run.held_out(split)])
    return trace_documents(loaded, documents, progress=progress, tokens_per_domain=TOKENS_PER_DOMAIN)
