"""Two views of each of some training documents: what a contrastive loss draws together. P documents, V = 2 P views."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_core.config.contrastive_views import ContrastiveConfig
from moe_core.data.renaming import rename_identifiers
from moe_core.data.token_stream import DocumentPlaces, TokenStream
from moe_core.data.tokenizer import Tokenizer
from moe_core.errors import DataError

SHORTEST_VIEW = 8
"""Tokens; a document of fewer than two such halves has no views."""
_STREAM = 7
"""Keeps these draws apart from those of the batches, which have the same seed."""


@dataclass(frozen=True)
class Views:
    """The views of one step, two and two of one document."""

    token_ids: NDArray[np.int64]
    """[V, S]: the view's tokens, then end-of-text as padding. Nothing stands before them, as before a window of the
    language model: with end-of-text there, the loss on the first tokens of documents rose (docs/decisions/0061)."""
    lengths: NDArray[np.int64]
    """[V]: tokens of the view itself, at least 1."""
    labels: NDArray[np.int64]
    """[V]: views of one label belong together."""
    source_ids: NDArray[np.int64]
    """[V]: views of one source are no negatives of each other."""


class ViewMaker:
    """Makes the views of each step, a pure function of the step and the seed."""

    def __init__(
        self, stream: TokenStream, places: DocumentPlaces, tokenizer: Tokenizer, config: ContrastiveConfig, seed: int
    ) -> None:
        """Raises DataError where fewer than two documents are long enough."""
        self._stream, self._places, self._tokenizer = stream, places, tokenizer
        self._config, self._seed = config, seed
        self._long_enough = np.flatnonzero(places.tokens > 2 * SHORTEST_VIEW)
        if len(self._long_enough) < 2:
            raise DataError(
                f"a contrastive loss needs two documents of at least {2 * SHORTEST_VIEW} tokens in the training text; "
                f"found {len(self._long_enough)}: set training.contrastive.coef = 0, or give longer documents"
            )

    def of(self, step: int) -> Views:
        """The views of `step`."""
        config, places = self._config, self._places
        rng = np.random.default_rng([self._seed, step, _STREAM])
        count = min(config.texts, len(self._long_enough))
        chosen = rng.choice(self._long_enough, size=count, replace=False)
        views = [view for document in chosen for view in self._two_views(int(document), rng)]
        lengths = np.array([len(view) for view in views], dtype=np.int64)
        end_of_text = self._tokenizer.end_of_text
        token_ids = np.full((len(views), int(lengths.max())), end_of_text, dtype=np.int64)
        for row, view in zip(token_ids, views, strict=True):
            row[: len(view)] = view
        sources = np.repeat(places.source_ids[chosen].astype(np.int64), 2)
        labels = sources if config.positives == "source" else np.repeat(chosen.astype(np.int64), 2)
        return Views(token_ids, lengths, labels, sources)

    def _two_views(self, document: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
        """A crop of the first half and one of the second, with what the configuration changes in them."""
        start, tokens = int(self._places.starts[document]) + 1, int(self._places.tokens[document]) - 1
        halves = [(start, tokens // 2), (start + tokens // 2, tokens - tokens // 2)]
        views = []
        for place, (first, length) in enumerate(halves):
            size = min(length, self._config.tokens)
            at = first + int(rng.integers(length - size + 1))
            ids = self._stream.windows(np.array([at], dtype=np.int64), size)[0]
            if self._config.rename_identifiers and place == 1:
                ids = self._renamed(start, tokens, rng)[-length:][:size]
            if self._config.deletion:
                kept = rng.random(len(ids)) >= self._config.deletion
                kept[int(rng.integers(len(ids)))] = True
                ids = ids[kept]
            views.append(ids)
        return views

    def _renamed(self, start: int, tokens: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """The ids of a whole document whose names are changed; its own where it is no Python."""
        ids = self._stream.windows(np.array([start], dtype=np.int64), tokens)[0]
        text = self._tokenizer.decode(ids.tolist())
        renamed = rename_identifiers(text, rng)
        return ids if renamed == text else np.array(self._tokenizer.encode(renamed), dtype=np.int64)
