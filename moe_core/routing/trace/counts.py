"""Counts of routing decisions: what every measure is computed from.

All are sums over tokens, so the counts of two parts of a trace add up to those of the whole; a trace too large for
memory is counted part by part. Unused slots (index -1) are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_core.errors import TraceError
from moe_core.routing.trace.blocks import block_counts
from moe_core.routing.trace.kernels import (
    CHUNK_TOKENS,
    add_grouped_counts,
    count_keys,
    joint_counts,
    pair_counts_of,
    slot_columns,
)
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.routing.trace.trace import AnyRouting, AnyTrace, RoutingTrace, StoredTrace
from moe_core.routing.trace.types import Int16Array, Int64Array


def label_counts(
    trace: AnyTrace, labels: Callable[[RoutingTrace], npt.NDArray[np.integer[Any]]], size: int
) -> Int64Array:
    """[L,G,E] assignments of tokens with each of G = `size` labels to each expert.

    `labels` gives the label [T] of each token of a part of the trace, 0..G-1, or -1 to leave it out.
    """
    counts_LGE = np.zeros((trace.num_layers, size, trace.num_experts), dtype=np.int64)
    for part in trace.parts():
        add_grouped_counts(counts_LGE, part.router_indices, labels(part))
    return counts_LGE


def expert_counts(trace: AnyRouting) -> Int64Array:
    """tokens_per_expert [L,E]: assignments to each expert."""
    if isinstance(trace, RoutingCounts):
        summed: Int64Array = trace.tokens_per_expert.sum(axis=(0, 2))
        return summed
    if isinstance(trace, StoredTrace):
        counts: Int64Array = block_counts(trace).counts.sum(axis=1)
        return counts
    E = trace.num_experts
    counts_LE = np.zeros((trace.num_layers, E), dtype=np.int64)
    for indices_LTK in _token_chunks(trace):
        for counts_E, indices_TK in zip(counts_LE, indices_LTK, strict=True):
            counts_E += count_keys(indices_TK.astype(np.intp) + 1, (E + 1,))[1:]
    return counts_LE


def domain_counts(trace: AnyRouting) -> Int64Array:
    """[L,M,E] assignments of each of the M domains' tokens to each expert."""
    if not isinstance(trace, RoutingTrace):
        parts, M = block_counts(trace), len(trace.domains)
        return np.stack([parts.counts[:, parts.domain_ids == m].sum(axis=1) for m in range(M)], axis=1)
    return label_counts(trace, lambda part: part.domain_ids, len(trace.domains))


def domain_tokens(trace: AnyRouting) -> Int64Array:
    """[M] tokens of each domain."""
    if not isinstance(trace, RoutingTrace):
        own = block_counts(trace)
        return np.bincount(own.domain_ids, own.tokens, minlength=len(trace.domains)).astype(np.int64)
    tokens_M = np.zeros(len(trace.domains), dtype=np.int64)
    for part in trace.parts():
        tokens_M += np.bincount(part.domain_ids, minlength=len(tokens_M))
    return tokens_M


def pair_counts(trace: AnyRouting) -> Int64Array:
    """[L,E,E] tokens that chose both experts, over all pairs of slots: symmetric, on the diagonal expert_counts.

    Raises TraceError for counts that do not have them.
    """
    if isinstance(trace, RoutingCounts):
        if "pairs" not in trace.extras:
            raise TraceError(
                'these counts do not say which experts were chosen together; count with extras=("pairs",), or trace '
                "the text token by token"
            )
        return trace.extras["pairs"].round().astype(np.int64)
    E = trace.num_experts
    counts_LEE = np.zeros((trace.num_layers, E, E), dtype=np.int64)
    for indices_LTK in _token_chunks(trace):
        counts_LEE += pair_counts_of(indices_LTK, E)
    return counts_LEE


def flow_counts(trace: AnyTrace) -> Int64Array:
    """[L-1,E,E] pairs (slot of a layer, slot of the next layer) of one token, by the experts they chose."""
    E = trace.num_experts
    counts_LEE = np.zeros((trace.num_layers - 1, E, E), dtype=np.int64)
    for indices_LTK in _token_chunks(trace):
        columns_KT = slot_columns(indices_LTK[0])
        for counts_EE, indices_TK in zip(counts_LEE, indices_LTK[1:], strict=True):
            next_KT = slot_columns(indices_TK)
            counts_EE += joint_counts(columns_KT, next_KT, E)
            columns_KT = next_KT
    return counts_LEE


def _token_chunks(trace: AnyTrace) -> Iterator[Int16Array]:
    """[L,t,K] the choices of a few tokens at a time, so that the keys made of them stay in the processor's cache."""
    size = max(CHUNK_TOKENS, trace.num_experts**2)  # many counts would cost more to add up than few tokens to count
    for part in trace.parts():
        for start in range(0, part.num_tokens, size):
            yield part.router_indices[:, start : start + size]
