"""What a benchmark is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from moe_core.data.document import Document
from moe_core.data.splits import HELD_OUT_SPLITS
from moe_core.evaluation.evaluate import scored_text
from moe_core.evaluation.tasks.result import Sample
from moe_core.evaluation.tasks.scored_tokens import ScoredTokens, score_tokens
from moe_core.evaluation.tasks.scores import Score
from moe_core.inference.open import language_model
from moe_core.inference.protocol import LanguageModel
from moe_core.progress import Progress, silent

if TYPE_CHECKING:
    from moe_core.evaluation.tasks.questions import Questions
    from moe_core.runs.checkpoint import LoadedRun


@dataclass(frozen=True)
class Outcome:
    """What a benchmark found, or why it was not run."""

    scores: tuple[Score, ...] = ()
    samples: tuple[Sample, ...] = ()
    note: str = ""
    """What a reader has to know of how it was measured; one or two sentences."""
    not_run: str = ""
    """Why there is no score, and what gives one. Empty when it was run."""


@dataclass(frozen=True)
class Inputs:
    """What the user brings: a text, and files of questions, already read and checked."""

    text: str | None = None
    questions: dict[str, Questions] = field(default_factory=dict)
    """By task: arc, mmlu, gsm8k."""


@dataclass(eq=False)
class Context:
    """A run with all that a benchmark may need of it."""

    loaded: LoadedRun
    seed: int = 0
    """The same seed gives the same outcome."""
    inputs: Inputs = field(default_factory=Inputs)
    progress: Progress = silent
    """progress(what, done, total) for anything that takes seconds."""

    @cached_property
    def model(self) -> LanguageModel:
        """The run's model and tokenizer: read, write, logits."""
        return language_model(self.loaded)

    @cached_property
    def held_out(self) -> dict[str, ScoredTokens]:
        """Every held-out token that `--evaluate` scores, by split ("validation", "unseen"), with how it was foreseen.

        Raises RunError when the run's held-out text is missing.
        """
        loaded = self.loaded
        scored: dict[str, ScoredTokens] = {}
        datasets = {split: scored_text(loaded, split) for split in HELD_OUT_SPLITS}
        total, before = sum(int((dataset.positions > 0).sum()) for dataset in datasets.values()), 0
        for split, dataset in datasets.items():
            scored[split] = score_tokens(
                self.model,
                dataset,
                seq_len=loaded.config.training.seq_len,
                progress=lambda stage, done, _, before=before: self.progress(stage, before + done, total),  # type: ignore[misc]
            )
            before += len(scored[split].nats)
        return scored

    def documents(self, most: int, domain: str, min_tokens: int, split: str = "unseen") -> Sequence[Document]:
        """At most so many held-out documents of a domain that are long enough, in a seeded order."""
        found = [document for document in self.loaded.run.held_out(split) if document.domain == domain]
        lengths = self.model.tokenizer.encode_batch([document.text for document in found])
        found = [document for document, ids in zip(found, lengths, strict=True) if len(ids) >= min_tokens]
        order = np.random.default_rng([self.seed, len(found)]).permutation(len(found))
        return [found[at] for at in order[:most]]
