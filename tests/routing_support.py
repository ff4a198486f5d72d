"""Traces made by hand or at random, for tests of measures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from moe_core.routing import RoutingTrace


def trace_of(indices: Any, *, num_experts: int, **fields: Any) -> RoutingTrace:
    """A trace with equal weights on the used slots of `indices` [T,K] or [L,T,K]."""
    chosen = np.asarray(indices)
    fields.setdefault("token_ids", np.zeros(chosen.shape[-2], int))
    scores = np.where(chosen < 0, 0.0, 1.0 / chosen.shape[-1])
    return RoutingTrace.from_arrays(router_indices=chosen, router_scores=scores, num_experts=num_experts, **fields)


def random_experts(rng: np.random.Generator, tokens: tuple[int, ...], K: int, E: int) -> np.ndarray:
    """[*tokens,K] K different ones of E experts, drawn evenly."""
    chosen: np.ndarray = np.argsort(rng.random((*tokens, E)), axis=-1)[..., :K]
    return chosen


def random_trace(seed: int, *, L: int = 2, T: int = 60, K: int = 2, E: int = 5, drop: float = 0.1) -> RoutingTrace:
    """Three domains, six documents of four sources; `drop` of the slots are unused."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(L, T, E)) * 2
    chosen = np.argsort(-logits, axis=-1)[..., :K]
    documents = np.sort(rng.integers(0, 6, T))
    return trace_of(
        np.where(rng.random((L, T, K)) < drop, -1, chosen),
        num_experts=E,
        router_logits=logits,
        token_ids=rng.integers(0, 4, T),
        predicted_ids=rng.integers(0, 4, T),
        document_ids=documents,
        source_ids=documents % 4,
        domain_ids=documents % 3,
        domains=["a", "b", "c"],
    )


def renamed(trace: RoutingTrace, new_name: np.ndarray) -> RoutingTrace:
    """The trace with expert e called new_name[e]."""
    assert trace.router_logits is not None
    indices = np.where(trace.router_indices < 0, -1, new_name[trace.router_indices]).astype(np.int16)
    return replace(trace, router_indices=indices, router_logits=trace.router_logits[..., np.argsort(new_name)])
