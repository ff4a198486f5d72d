"""Traces of any size whose routing is made up: skewed load, experts that follow tokens and domains a little.

They are written part by part and never in memory as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moe_core.routing.trace.parquet import TraceWriter
from moe_core.routing.trace.trace import RoutingTrace

DOMAINS = ("finance", "legal", "code", "general")
_CHUNK = 2**17
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Size:
    """Sizes of a made-up trace."""

    tokens: int = 200_000
    experts: int = 16
    layers: int = 4
    documents: int = 400
    vocabulary: int = 8_000
    top_k: int = 2
    documents_of_source: int = 1
    kept: float = 0.0
    """Part of the tokens, 0..1, that keep the first expert of the token before them."""


LARGE_MODEL = Size(
    tokens=12_000, experts=128, layers=48, documents=96, vocabulary=600, top_k=8, documents_of_source=2, kept=0.3
)
"""As a real model is: 48 layers of 128 experts, 8 for each token. Made in two seconds."""


def write_trace(path: Path, size: Size, seed: int = 0) -> None:
    """Documents are of one length, the sources of four domains take turns, the tokens follow a power law."""
    with TraceWriter(path) as writer:
        for part in trace_parts(size, np.random.default_rng(seed)):
            writer.write(part)


def trace_parts(size: Size, rng: np.random.Generator) -> Iterator[RoutingTrace]:
    """Part by part, none cutting a document."""
    L, E, V = size.layers, size.experts, size.vocabulary
    home_LV = rng.integers(0, E, (L, V))
    texts = {i: f" word{i}" for i in range(V)}
    length = -(-size.tokens // size.documents)
    chunk = max(1, _CHUNK // length) * length  # a document is not cut
    for start in range(0, size.tokens, chunk):
        at = np.arange(start, min(start + chunk, size.tokens))
        document_T = at // length
        source_T = document_T // size.documents_of_source
        token_T = (rng.random(len(at)) ** 3 * V).astype(np.int32)
        domain_T = source_T % len(DOMAINS)
        first_LT = np.minimum(rng.exponential(E / 3, (L, len(at))), E - 1).astype(np.int64)
        first_LT = np.where(rng.random(first_LT.shape) < 0.4, home_LV[:, token_T], first_LT)
        of_domain_LT = (domain_T * 3 + np.arange(L)[:, None]) % E
        first_LT = np.where(rng.random(first_LT.shape) < 0.1, of_domain_LT, first_LT)
        first_LT = _kept(first_LT, at % length == 0, size.kept, rng)
        yield RoutingTrace.from_arrays(
            router_indices=_chosen(first_LT, size, rng),
            router_scores=_weights(first_LT.shape, size.top_k, rng),
            num_experts=E,
            token_ids=token_T,
            document_ids=document_T,
            source_ids=source_T,
            positions=at % length,
            domain_ids=domain_T,
            domains=list(DOMAINS),
            source="made-up routing",
            vocabulary=texts,
        )


def _kept(first_LT: Integers, begins_T: npt.NDArray[np.bool_], part: float, rng: np.random.Generator) -> Integers:
    """The same, where `part` of the tokens have the expert of the token before, unless a document begins."""
    if not part:
        return first_LT
    new_LT = (rng.random(first_LT.shape) >= part) | begins_T
    from_LT = np.maximum.accumulate(np.where(new_LT, np.arange(first_LT.shape[1]), 0), axis=1)
    return np.take_along_axis(first_LT, from_LT, axis=1)


def _chosen(first_LT: Integers, size: Size, rng: np.random.Generator) -> Integers:
    """[L T K] the first expert and K - 1 others, no two alike.

    They are neighbours in a ring of the layer's own, so that some experts are chosen together more often than others.
    """
    E, K = size.experts, size.top_k
    if K == 2:
        return np.stack([first_LT, (first_LT + rng.integers(1, E, first_LT.shape)) % E], axis=-1)
    ring_LE = 1 + rng.permuted(np.tile(np.arange(E - 1), (size.layers, 1)), axis=1)
    place_LTK = rng.integers(0, E - 1, first_LT.shape)[..., None] + np.arange(K - 1)
    step_LTK = np.take_along_axis(ring_LE[:, None, :], place_LTK % (E - 1), axis=2)
    return np.concatenate([first_LT[..., None], (first_LT[..., None] + step_LTK) % E], axis=-1)


def _weights(shape: tuple[int, ...], top_k: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """[L T K] weights that sum to 1, the first at least half of it."""
    first_LT = 0.5 + 0.5 * rng.random(shape)
    if top_k == 1:
        return np.ones((*shape, 1))
    others_K = 1.0 / np.arange(1, top_k)
    rest_LTK = (1 - first_LT)[..., None] * (others_K / others_K.sum())
    return np.concatenate([first_LT[..., None], rest_LTK], axis=-1)
