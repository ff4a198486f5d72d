"""Do states of one text lie together? Two halves of each held-out document, read apart, look for each other.

The embedding of a half is the mean of its last states (model/contrastive.py). A half's nearest other half should be
that of its own document. Axes: n documents, D model width, L MoE layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from moe_core.data.splits import HELD_OUT_SPLITS
from moe_core.data.tokens import TokenDataset
from moe_core.data.views import SHORTEST_VIEW
from moe_core.errors import DataError
from moe_core.model.contrastive import alignment, mean_pooled, uniformity
from moe_core.progress import Progress, silent
from moe_core.routing.statistics.bootstrap import totals_ratio_interval
from moe_core.runs.checkpoint import LoadedRun
from moe_core.runs.folder import RunFolder

DOCUMENTS_PER_DOMAIN = 64
"""Unless asked otherwise; of more those that come first in an order of the seed."""
_TOGETHER = 16
"""Halves that go through the model together."""


@dataclass(frozen=True)
class HalfStates:
    """The embeddings of both halves of some documents."""

    first: NDArray[np.float32]
    """[n, D] of length 1."""
    second: NDArray[np.float32]
    """[n, D] of length 1."""
    experts: NDArray[np.int64]
    """[n, L]: the expert of each MoE layer that most tokens of the document chose first."""
    token_counts: NDArray[np.int32]
    """[2 n, V]: occurrences of each token in the first halves, then in the second ones."""
    document_ids: NDArray[np.int64]
    """[n]: places in the list of documents."""
    domain_ids: NDArray[np.int64]
    """[n]"""
    source_ids: NDArray[np.int64]
    """[n]"""
    domains: tuple[str, ...]
    tokens: int
    """Of all halves."""


@dataclass(frozen=True)
class Share:
    """A share of documents, with its 95 % interval over sources; NaN where it cannot be told."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Retrieval:
    """How well halves find each other."""

    documents: int
    sources: int
    tokens: int
    found: Share
    """Halves whose nearest half of the other kind is that of their own document."""
    by_domain: dict[str, Share]
    chance: float
    """1/n: a half drawn at random."""
    chance_in_group: float
    """What knowing the source alone would give, or the domain where a source has one document: a half drawn from
    those of the same source or domain."""
    by_words: Share
    """The same search by the tokens that two halves share (cosine of counts times log inverse document frequency)."""
    alignment: float
    """Mean squared distance of the two halves, 0 to 4."""
    uniformity: float
    """See model.contrastive.uniformity."""


def embed_halves(
    loaded: LoadedRun,
    text: TokenDataset,
    *,
    longest: int,
    per_domain: int = DOCUMENTS_PER_DOMAIN,
    seed: int = 0,
    progress: Progress | None = None,
) -> HalfStates:
    """Read both halves of each document of `text` (at most `per_domain` of a domain), `longest` tokens of each.

    Raises DataError where fewer than two documents are long enough.
    """
    report, model = progress or silent, loaded.model
    starts, ends = text.document_bounds()
    chosen = _chosen(text, starts, ends, per_domain, seed)
    bounds = [(int(starts[document]), int(ends[document])) for document in chosen]
    halves = [half for start, end in bounds for half in _halves(text, start, end, longest)]
    device, was_training = next(model.parameters()).device, model.training
    pooled, firsts = [], []
    model.eval()
    try:
        for at in range(0, len(halves), _TOGETHER):
            z_BD, experts_BL = _read(loaded, halves[at : at + _TOGETHER], device)
            pooled.append(z_BD)
            firsts += experts_BL
            report("reading", min(at + _TOGETHER, len(halves)), len(halves))
    finally:
        model.train(was_training)
    z = np.concatenate(pooled)
    counts = np.stack([np.bincount(half, minlength=loaded.tokenizer.vocab_size).astype(np.int32) for half in halves])
    votes = [np.concatenate(pair, axis=1) for pair in zip(firsts[::2], firsts[1::2], strict=True)]
    return HalfStates(
        first=z[::2],
        second=z[1::2],
        experts=np.array([[np.bincount(layer).argmax() for layer in vote] for vote in votes], dtype=np.int64),
        token_counts=np.concatenate((counts[::2], counts[1::2])),
        document_ids=text.document_ids[starts[chosen]].astype(np.int64),
        domain_ids=text.domain_ids[starts[chosen]].astype(np.int64),
        source_ids=text.source_ids[starts[chosen]].astype(np.int64),
        domains=text.domains,
        tokens=sum(len(half) for half in halves),
    )


def held_out_documents(loaded: LoadedRun, owner: RunFolder | None = None) -> TokenDataset:
    """What the run `owner` (None = its own) was not trained on, in the tokens of `loaded`."""
    owner = owner or loaded.run
    documents = [document for split in HELD_OUT_SPLITS for document in owner.held_out(split)]
    return TokenDataset.build(documents, loaded.tokenizer, owner.domains())


def retrieval(states: HalfStates, seed: int = 0) -> Retrieval:
    """Who finds whom, with intervals over sources."""
    hits_n = hits(states.first @ states.second.T)
    words = _by_words(states.token_counts)
    half = len(words) // 2
    word_hits_n = hits(words[:half] @ words[half:].T)
    n = len(hits_n)
    in_source = np.array([np.sum(states.source_ids == source) for source in states.source_ids])
    in_domain = np.array([np.sum(states.domain_ids == domain) for domain in states.domain_ids])
    both = torch.from_numpy(np.concatenate((states.first, states.second)))
    labels = torch.arange(n).repeat(2)
    found = {
        domain: share_of(hits_n[states.domain_ids == number], states.source_ids[states.domain_ids == number], seed)
        for number, domain in enumerate(states.domains)
        if (states.domain_ids == number).any()
    }
    return Retrieval(
        documents=n,
        sources=len(np.unique(states.source_ids)),
        tokens=states.tokens,
        found=share_of(hits_n, states.source_ids, seed),
        by_domain=found,
        chance=1 / n,
        chance_in_group=float((1 / np.where(in_source > 1, in_source, in_domain)).mean()),
        by_words=share_of(word_hits_n, states.source_ids, seed),
        alignment=float(alignment(both, labels)),
        uniformity=float(uniformity(both)),
    )


def difference(states: HalfStates, others: HalfStates, seed: int = 0) -> Share:
    """Share found by `states` less that by `others`, the same documents read by another model, paired by document.

    Raises DataError where they are not the same.
    """
    if not np.array_equal(states.document_ids, others.document_ids):
        raise DataError(
            "the two models did not read the same documents, as their tokenizers find others long enough; compare runs "
            "that were trained on the same text with the same vocabulary"
        )
    apart_n = hits(states.first @ states.second.T) - hits(others.first @ others.second.T)
    moved = share_of((apart_n + 1) / 2, states.source_ids, seed)  # within 0..1, where shares are drawn anew
    return Share(*(2 * value - 1 for value in (moved.value, moved.low, moved.high)))


def plane(states: HalfStates, moe_layers: Sequence[int]) -> pd.DataFrame:
    """The two directions along which embeddings differ most (principal components), a row a half: `x`, `y`, `domain`,
    `document`, `half` (1, 2), `found` (whether the nearest half is the document's other one) and a column `layer_L` for
    each MoE layer with the document's expert. `attrs`: `shares`, the parts of the variance that x and y show."""
    from sklearn.decomposition import PCA

    z = np.concatenate((states.first, states.second))
    components = PCA(n_components=2, random_state=0).fit(z)
    xy = components.transform(z)
    n = len(states.first)
    frame = pd.DataFrame(
        {
            "x": xy[:, 0],
            "y": xy[:, 1],
            "domain": np.array(states.domains)[np.tile(states.domain_ids, 2)],
            "document": np.tile(states.document_ids, 2),
            "half": np.repeat([1, 2], n),
            "found": np.tile(hits(states.first @ states.second.T) == 1, 2),
            **{f"layer_{layer}": np.tile(states.experts[:, row], 2) for row, layer in enumerate(moe_layers)},
        }
    )
    frame.attrs["shares"] = components.explained_variance_ratio_.tolist()
    return frame


def hits(similar_nn: NDArray[np.float32]) -> NDArray[np.float64]:
    """[n] 1, 1/2 or 0: how many of the two halves of each document have the other as their nearest. Ties are misses."""
    own = np.diagonal(similar_nn)
    others = similar_nn.copy()
    np.fill_diagonal(others, -np.inf)
    found: NDArray[np.float64] = ((own > others.max(axis=1)).astype(np.float64) + (own > others.max(axis=0))) / 2
    return found


def share_of(values_n: NDArray[np.float64], source_ids_n: NDArray[np.int64], seed: int) -> Share:
    """Their mean, with an interval that draws sources anew."""
    _, source_n = np.unique(source_ids_n, return_inverse=True)
    part, whole = np.bincount(source_n, weights=values_n), np.bincount(source_n)
    low, high = totals_ratio_interval(part[:, None], whole[:, None], np.random.default_rng(seed))
    return Share(float(values_n.mean()), float(low[0]), float(high[0]))


def retrieval_verdict(found: Retrieval) -> str:
    """What to conclude, in one or two sentences."""
    share, base, words = found.found, found.chance_in_group, found.by_words
    numbers = (
        f"{share.value:.0%} of halves find the other half of their document (95 % interval {share.low:.0%} to "
        f"{share.high:.0%}; {found.documents} documents of {found.sources} sources; by chance {found.chance:.1%}, by "
        f"shared words {words.value:.0%})"
    )
    if not np.isfinite(share.low):
        return f"Cannot be told: {numbers}; there are too few sources."
    if share.low <= base:
        return f"States tell no more than a text's source or domain: {numbers}; knowing that alone gives {base:.1%}."
    if share.low > words.high:
        return f"States tell a document from others better than its words do: {numbers}."
    if share.high < words.low:
        return f"Shared words tell a document better than states do: {numbers}."
    return f"States tell a document about as well as its words do: {numbers}."


def _chosen(
    text: TokenDataset, starts: NDArray[np.int64], ends: NDArray[np.int64], per_domain: int, seed: int
) -> NDArray[np.int64]:
    """Documents that are long enough, in the order of the text."""
    long_enough = np.flatnonzero(ends - starts > 2 * SHORTEST_VIEW)
    chosen: list[int] = []
    for domain in range(len(text.domains)):
        own = long_enough[text.domain_ids[starts[long_enough]] == domain]
        chosen += np.random.default_rng([seed, domain]).permutation(own)[:per_domain].tolist()
    if len(chosen) < 2:
        raise DataError(
            f"{len(chosen)} documents have two halves of at least {SHORTEST_VIEW} tokens; expected at least 2: give "
            "more or longer text"
        )
    return np.array(sorted(chosen), dtype=np.int64)


def _halves(text: TokenDataset, start: int, end: int, longest: int) -> list[NDArray[np.int32]]:
    """The beginnings of both halves of a document, without its end-of-text."""
    first = start + 1
    middle = first + (end - first) // 2
    return [text.token_ids[first:middle][:longest], text.token_ids[middle:end][:longest]]


@torch.inference_mode()
def _read(
    loaded: LoadedRun, halves: Sequence[NDArray[np.int32]], device: torch.device
) -> tuple[NDArray[np.float32], list[NDArray[np.int64]]]:
    """([B, D] embeddings, of each half [L, tokens] the first expert of each token)."""
    lengths = torch.tensor([len(half) for half in halves], device=device)
    end_of_text = loaded.tokenizer.end_of_text
    ids = torch.full((len(halves), int(lengths.max())), end_of_text, device=device)
    for row, half in zip(ids, halves, strict=True):
        row[: len(half)] = torch.from_numpy(half.astype(np.int64))
    states_BSD, routed = loaded.model.states(ids)
    first_LBS = [layer.router_indices[:, 0].view(len(halves), -1).clamp(min=0).cpu().numpy() for layer in routed]
    experts = [
        np.array([layer[row, : len(half)] for layer in first_LBS], dtype=np.int64).reshape(len(routed), -1)
        for row, half in enumerate(halves)
    ]
    return mean_pooled(states_BSD, lengths).cpu().numpy(), experts


def _by_words(counts: NDArray[np.int32]) -> NDArray[np.float32]:
    """[rows, V] counts as rows of length 1, rare tokens weighing more."""
    present = (counts > 0).sum(axis=0)
    weighted = counts * np.log((1 + len(counts)) / (1 + present))
    rows: NDArray[np.float32] = (weighted / np.linalg.norm(weighted, axis=1, keepdims=True).clip(min=1e-12)).astype(
        np.float32
    )
    return rows
