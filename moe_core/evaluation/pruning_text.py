"""Two texts that share no source: one to put experts in order, one to tell what taking them out costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moe_core.data.document import Document
from moe_core.data.tokens import TokenDataset
from moe_core.errors import UsageError
from moe_core.inference.held_out import ABLATED_TOKENS_PER_DOMAIN, held_out_text
from moe_core.inference.open import language_model
from moe_core.inference.protocol import LanguageModel, Loaded
from moe_core.inference.scoring import as_dataset
from moe_core.runs.analysis import HELD_OUT_TEXT


@dataclass(frozen=True, eq=False)
class PruningText:
    """What is read. No source of the one is in the other."""

    tuning: TokenDataset
    scored: TokenDataset
    name: str
    """For people: what was scored."""


def text_of_run(loaded: Loaded | LanguageModel) -> PruningText:
    """The beginnings of what the run was not trained on: its validation split to put in order, its unseen one to score,
    at most ABLATED_TOKENS_PER_DOMAIN of each domain. Raises UsageError for a model that is no run, RunError where it
    kept no such text."""
    run = getattr(loaded, "run", None)
    if run is None:
        raise UsageError(f"{language_model(loaded).name} has no held-out text; expected documents to read")
    tuning, scored = (
        held_out_text(run, loaded.tokenizer, ABLATED_TOKENS_PER_DOMAIN, splits=[split], only_beginnings=True)
        for split in ("validation", "unseen")
    )
    return PruningText(tuning, scored, HELD_OUT_TEXT)


def split_by_source(loaded: Loaded | LanguageModel, documents: Sequence[Document], name: str) -> PruningText:
    """Half of each domain's sources to put in order, the other half to score, by a fixed shuffle; a document without a
    source is its own, and a source met in an earlier domain stays in the half it has there. Of each half at most
    ABLATED_TOKENS_PER_DOMAIN tokens of a domain.

    Raises UsageError with fewer than two sources in every domain.
    """
    halves: tuple[list[Document], list[Document]] = ([], [])
    of_domain: dict[str, list[tuple[str | int, Document]]] = {}
    for place, document in enumerate(documents):
        of_domain.setdefault(document.domain, []).append((document.source or place, document))
    half_of: dict[str | int, int] = {}
    rng = np.random.default_rng(0)
    for own in of_domain.values():
        new = [source for source in dict.fromkeys(source for source, _ in own) if source not in half_of]
        order = rng.permutation(len(new))
        half_of |= {new[place]: int(rank >= len(new) // 2) for rank, place in enumerate(order)}
        for source, document in own:
            halves[half_of[source]].append(document)
    if not halves[0]:
        raise UsageError(
            f"{name} is of one source; expected two or more: experts are put in order on one and scored on another"
        )
    tuned, scored = (
        as_dataset(loaded, as_dataset(loaded, half).select(ABLATED_TOKENS_PER_DOMAIN, seed=0)) for half in halves
    )
    return PruningText(tuned, scored, name)
