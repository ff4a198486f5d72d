"""A run's held-out text within a budget: the one way to take it, whatever is then done with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from moe_core.data.document import Document
from moe_core.data.sources import generated_documents
from moe_core.data.splits import HELD_OUT_SPLITS
from moe_core.data.tokenizer import TextTokenizer
from moe_core.data.tokens import TokenDataset
from moe_core.errors import RunError
from moe_core.inference.open import language_model
from moe_core.inference.protocol import LanguageModel, Loaded
from moe_core.inference.scoring import as_dataset
from moe_core.inference.tracing import trace_dataset
from moe_core.progress import Progress
from moe_core.routing import RoutingTrace
from moe_core.runs.folder import RunFolder

TRACED_TOKENS_PER_DOMAIN = 4096
"""For the routing that pages show: some 25 documents of each domain, enough for a verdict, seconds of a small model's
time."""
ABLATED_TOKENS_PER_DOMAIN = 2048
"""For switching experts off, each of which reads it anew."""
_CHARACTERS = 600


def held_out_text(
    run: RunFolder,
    tokenizer: TextTokenizer,
    tokens_per_domain: int,
    *,
    splits: Sequence[str] = HELD_OUT_SPLITS,
    only_beginnings: bool = False,
) -> TokenDataset:
    """What `run` was not trained on: at most so many tokens of each of its domains, the same ones each time.

    Document ids are places among the documents of `splits`, one split after the other; see TokenDataset.select.
    Raises RunError where the run kept no such text, or text that is not its own.
    """
    domains, documents = run.domains(), [document for split in splits for document in run.held_out(split)]
    strange = sorted({document.domain for document in documents} - set(domains))
    if strange:
        raise RunError(
            f"the held-out text of run {run.name!r} does not belong to it: it has a document of domain {strange[0]!r}, "
            f"its domains are {', '.join(domains)}; restore the run's folder from a copy"
        )
    chosen = beginnings(documents) if only_beginnings else documents
    dataset = TokenDataset.build(chosen, tokenizer, domains).select(tokens_per_domain, seed=0)
    if not (dataset.positions > 0).any():
        raise RunError(f"run {run.name!r} kept no {' or '.join(splits)} text to read; train it again on more text")
    return dataset


def text_of_ours() -> list[Document]:
    """For a model that brings no text: 20 generated documents of each of four domains."""
    return generated_documents(500, splits=["unseen"])


def beginnings(documents: Sequence[Document]) -> list[Document]:
    """The first characters of each document: more documents for the same tokens, as certainty is counted in them."""
    return [replace(document, text=document.text[:_CHARACTERS]) for document in documents]


def trace_held_out(loaded: Loaded | LanguageModel, run: RunFolder, progress: Progress | None = None) -> RoutingTrace:
    """The routing of beginnings of what `run` was not trained on, of both splits, by this model: its own or another.

    Raises RunError where the run kept no such text or it cannot be read.
    """
    model = language_model(loaded)
    text = held_out_text(run, model.tokenizer, TRACED_TOKENS_PER_DOMAIN, only_beginnings=True)
    return trace_dataset(model, as_dataset(model, text), progress).trace
