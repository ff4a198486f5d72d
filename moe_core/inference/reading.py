"""A text read by a model, part by part, with all that its routers chose; an accelerator is not waited for meanwhile.

Windows of like length go through the model together. What comes of a part is put into the order of the text by whoever
asks for it, in any thread: so a part can be written while the next one is read.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from moe_core.data import windows as window_rule
from moe_core.data.tokens import TokenDataset
from moe_core.data.windows import WindowBatch, WindowGroup, longest_window, window_batches, window_groups
from moe_core.inference.protocol import LanguageModel
from moe_core.inference.scoring import likeliest, predictions, token_nats, token_ranks
from moe_core.progress import Progress, silent
from moe_core.routing import Recorder, RoutingTrace, capture
from moe_core.routing.instruments.host_copies import HostCopies
from moe_core.routing.instruments.recorded import Recorded
from moe_core.routing.trace import parquet

_SHARE_OF_FREE_MEMORY = 0.25
"""How much of an accelerator's free memory the logits of a batch may take, with what is made of them."""
_MOST_PLACES = 32_768
"""Tokens that go through the model together on an accelerator, at most."""


class _ReadBatch(NamedTuple):
    windows: WindowBatch
    recorded: Recorded
    copies: HostCopies
    """Predicted ids [B, S]; where tokens were scored nats [N] and ranks [N] of windows.targets."""


@dataclass(frozen=True, eq=False)
class ReadGroup:
    """A part of a text, read. Its methods wait for the device."""

    model: LanguageModel
    dataset: TokenDataset
    start: int
    end: int
    """Its tokens are those of `dataset` from `start` to before `end`."""
    batches: list[_ReadBatch]
    texts: TokenTexts

    def trace(self) -> RoutingTrace:
        """The routing of its tokens, in the order of the text."""
        columns: dict[str, NDArray[Any]] = {}
        for windows, recorded, copies in self.batches:
            places, kept = windows.index[windows.keep] - self.start, windows.keep.ravel()
            indices_LTK, scores_LTK = recorded.choices(windows.index.size)
            order = recorded.order(windows.index)
            found: dict[str, NDArray[Any] | None] = {
                "router_indices": indices_LTK,
                "router_scores": scores_LTK,
                "router_logits": recorded.logits(),
                "predicted_ids": copies.arrays()[0].reshape(1, -1, 1),
            }
            for name, values in found.items():
                if values is not None:
                    shape = (len(values), self.end - self.start, values.shape[2])
                    columns.setdefault(name, np.empty(shape, values.dtype))[:, places] = values[
                        :, (kept if name == "predicted_ids" else order[kept])
                    ]
        predicted_ids = columns["predicted_ids"].ravel()
        first, part = self.batches[0].recorded, slice(self.start, self.end)
        token_ids = self.dataset.token_ids[part]
        occurring = np.unique(np.concatenate([token_ids, predicted_ids])).tolist()
        return RoutingTrace.from_arrays(
            router_indices=columns["router_indices"],
            router_scores=columns["router_scores"],
            router_logits=columns.get("router_logits"),
            predicted_ids=predicted_ids,
            token_ids=token_ids,
            document_ids=self.dataset.document_ids[part],
            source_ids=self.dataset.source_ids[part],
            positions=self.dataset.positions[part],
            domain_ids=self.dataset.domain_ids[part],
            num_experts=first.num_experts,
            layers=first.layers,
            score_function=first.score_function,
            varying_experts=first.varying_experts,
            null_experts=first.null_experts,
            domains=self.dataset.domains,
            source=self.model.name,
            vocabulary={token_id: self.texts[token_id] for token_id in occurring},
        )

    def scores(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int32]]]:
        """Of each batch the places of the scored tokens in the data set, their nats and their ranks."""
        for windows, _, copies in self.batches:
            _, nats_N, ranks_N = copies.arrays()
            yield windows.targets, nats_N, ranks_N


class TokenTexts(dict[int, str]):
    """Printable texts of token ids, each asked for once."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self._tokenizer = model.tokenizer

    def __missing__(self, token_id: int) -> str:
        self[token_id] = text = self._tokenizer.token_text(token_id)
        return text


def read_groups(
    model: LanguageModel,
    dataset: TokenDataset,
    tokens_per_batch: int | None = None,
    *,
    keep_logits: bool,
    scored: bool = False,
    progress: Progress | None = None,
) -> Generator[ReadGroup, None, None]:
    """Read `dataset` from its beginning to its end, about a row group of a stored trace at a time.

    `tokens_per_batch`: tokens that go through the model together and the longest window at once; None = as many as the
    processor or the accelerator reads well. `scored`: how well each token was foreseen is told, too.
    """
    report, texts, done = progress or silent, TokenTexts(model), 0
    with capture(model.model, keep_logits=keep_logits) as recorder:
        recorder.pause()
        for group in _groups(model, dataset, tokens_per_batch, keep_logits=keep_logits):
            batches = []
            for windows in group.batches:
                batches.append(_read(model, recorder, dataset, windows, scored=scored))
                done += int(windows.keep.sum())
                report("tracing", done, len(dataset))
            yield ReadGroup(model, dataset, group.start, group.end, batches, texts)


def _read(
    model: LanguageModel, recorder: Recorder, dataset: TokenDataset, windows: WindowBatch, *, scored: bool
) -> _ReadBatch:
    with recorder.restarted():
        (found,) = predictions(model.logits, model.device, dataset, [windows])
    told = [likeliest(found.logits)]
    if scored:
        told += [found.scored(token_nats, torch.float32), found.scored(token_ranks, torch.int32)]
    return _ReadBatch(windows, recorder.recorded(), HostCopies(told))


def _groups(
    model: LanguageModel, dataset: TokenDataset, tokens_per_batch: int | None, *, keep_logits: bool
) -> Iterator[WindowGroup]:
    size = longest_window(model.context_window, tokens_per_batch)
    if model.mixes_texts:
        for windows in window_batches(dataset, size, tokens_per_batch=tokens_per_batch):
            counted = windows.index[windows.keep]
            yield WindowGroup(int(counted[0]), int(counted[-1]) + 1, [windows])
        return
    token_bytes = len(model.moe_layers) * (6 * model.top_k + (2 * model.num_experts if keep_logits else 0))
    tokens = max(1, min(parquet.ROW_GROUP_TOKENS, parquet.ROW_GROUP_BYTES // max(1, token_bytes)))
    yield from window_groups(
        dataset, size, places=places_of(model) if tokens_per_batch is None else tokens_per_batch, tokens=tokens
    )


def places_read(model: LanguageModel, dataset: TokenDataset) -> int:
    """Tokens that go through the model to read `dataset` once, those that are context or padding included."""
    groups = _groups(model, dataset, None, keep_logits=False)
    return sum(windows.index.size for group in groups for windows in group.batches)


def places_of(model: LanguageModel) -> int:
    """Tokens that go through the model together: on an accelerator as many as its free memory bears."""
    places = window_rule.TOKENS_PER_BATCH
    if model.device.type != "cuda":
        return places
    free, _ = torch.cuda.mem_get_info(model.device)
    # The logits as they come, and float32 copies of a part of them.
    affordable = int(free * _SHARE_OF_FREE_MEMORY) // (8 * model.vocab_size)
    return max(places, min(_MOST_PLACES, affordable))
