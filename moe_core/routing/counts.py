"""Counts of routing decisions: what every measure is computed from.

All are sums over tokens, so the counts of two parts of a trace add up to those of the whole; a trace too large for
memory can be counted part by part. Unused slots (index -1) are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_core.routing.trace import RoutingTrace
from moe_core.routing.types import Float64Array, Int64Array

_Numbers = npt.NDArray[np.number[Any]] | float


def grouped_counts(
    indices_TK: npt.NDArray[np.integer[Any]], groups_T: npt.NDArray[np.integer[Any]], shape: tuple[int, int]
) -> Int64Array:
    """[G,E] assignments of each group's tokens to each expert in one layer; `shape` is (G, E)."""
    G, E = shape
    # One spare column takes the unused slots, so that -1 needs no mask.
    keys = groups_T.astype(np.int64)[:, None] * (E + 1) + (indices_TK + 1)
    return np.bincount(keys.reshape(-1), minlength=G * (E + 1)).reshape(G, E + 1)[:, 1:].astype(np.int64, copy=False)


def expert_counts(trace: RoutingTrace) -> Int64Array:
    """tokens_per_expert [L,E]: assignments to each expert."""
    E = trace.num_experts
    nobody = np.zeros(trace.num_tokens, dtype=np.int64)
    return np.stack([grouped_counts(layer_TK, nobody, (1, E))[0] for layer_TK in trace.router_indices])


def domain_counts(trace: RoutingTrace) -> Int64Array:
    """[L,M,E] assignments of each of the M domains' tokens to each expert."""
    shape = (len(trace.domains), trace.num_experts)
    return np.stack([grouped_counts(layer_TK, trace.domain_ids, shape) for layer_TK in trace.router_indices])


def domain_tokens(trace: RoutingTrace) -> Int64Array:
    """[M] tokens of each domain."""
    return np.bincount(trace.domain_ids, minlength=len(trace.domains)).astype(np.int64, copy=False)


@dataclass(frozen=True)
class Blocks:
    """Blocks of tokens that are not independent of one another: one document, or its part in one domain.

    `of_token` [T] block number of each token; `domain_ids` [N] domain of each block; `tokens` [N] its size.
    """

    of_token: Int64Array
    domain_ids: Int64Array
    tokens: Int64Array


def blocks(trace: RoutingTrace) -> Blocks:
    """Cut a trace into blocks. Domains are labels of blocks, which is what a permutation may shuffle."""
    M = len(trace.domains)
    keys = trace.document_ids.astype(np.int64) * M + trace.domain_ids
    unique, of_token, tokens = np.unique(keys, return_inverse=True, return_counts=True)
    return Blocks(of_token.astype(np.int64, copy=False), unique % M, tokens.astype(np.int64, copy=False))


def entropy(counts: npt.NDArray[np.number[Any]], axis: int = -1) -> Float64Array:
    """Shannon entropy in nats of the distribution in proportion to `counts` along `axis`; NaN where they sum to 0."""
    total = counts.sum(axis=axis, keepdims=True, dtype=np.float64)
    share = np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
    terms = share * np.log(np.where(share > 0, share, 1.0))
    result: Float64Array = -terms.sum(axis=axis)
    return np.maximum(result, 0.0)  # -0.0 reads badly; keeps NaN


def mutual_information(counts: npt.NDArray[np.number[Any]]) -> Float64Array:
    """I(row; column) in nats of joint counts [...,R,C]: H(row) + H(column) - H(row, column); NaN where empty."""
    joint = entropy(counts.reshape(*counts.shape[:-2], -1))
    information: Float64Array = entropy(counts.sum(axis=-1)) + entropy(counts.sum(axis=-2)) - joint
    return np.maximum(information, 0.0)  # rounding may reach -1e-16


def ratio(numerator: _Numbers, denominator: _Numbers) -> Float64Array:
    """numerator / denominator, NaN where the denominator is 0: a share of nothing is unknown, not an error."""
    top, bottom = np.broadcast_arrays(np.asarray(numerator, np.float64), np.asarray(denominator, np.float64))
    result: Float64Array = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)
    return result


def normalised(weights: npt.NDArray[np.number[Any]], empty: float = np.nan) -> Float64Array:
    """Divide by the sum along the last axis; `empty` where that is 0."""
    total = np.broadcast_to(weights.sum(axis=-1, keepdims=True, dtype=np.float64), weights.shape)
    result: Float64Array = np.divide(weights, total, out=np.full(weights.shape, empty), where=total > 0)
    return result
