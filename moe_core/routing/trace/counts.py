"""Counts of routing decisions: what every measure is computed from.

All are sums over tokens, so the counts of two parts of a trace add up to those of the whole; a trace too large for
memory is counted part by part. Unused slots (index -1) are not counted.

Each is numpy's bincount over a key made of whole numbers, which is why a million tokens take milliseconds: measured by
bench.aggregation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_core.routing.trace.trace import AnyTrace, RoutingTrace, StoredTrace
from moe_core.routing.trace.types import Float64Array, Int16Array, Int64Array

_CHUNK_TOKENS = 65_536
MAX_BLOCKS, MAX_BLOCK_COUNTS = 2**15, 2**24
"""More sources than this, or so many that each one's counts would be more numbers than this (128 MiB), are counted in
random groups, see block_counts."""
_MIN_BLOCKS = 256
MIN_FREEDOM = 8
"""A text of fewer sources than this beyond one a domain has too few to tell from how much they differ."""
STRETCHES, STRETCH_TOKENS = 16, 32
"""Such a text is cut into so many stretches a domain, of at least so many tokens."""

_Numbers = npt.NDArray[np.number[Any]] | float


def grouped_counts(
    indices_TK: npt.NDArray[np.integer[Any]], groups_T: npt.NDArray[np.integer[Any]], shape: tuple[int, int]
) -> Int64Array:
    """[G,E] assignments of each group's tokens to each expert in one layer; `shape` is (G, E). Group -1 counts not."""
    G, E = shape
    # A spare row and column take what is not counted, so that -1 needs no mask. Slot by slot: adding a strided
    # column to a flat one is several times faster than numpy's broadcast over an axis of two.
    first_T = np.multiply(groups_T, E + 1, dtype=np.intp)
    first_T += E + 2
    keys_KT = np.empty(indices_TK.shape[::-1], dtype=np.intp)
    for slot, key_T in enumerate(keys_KT):
        np.add(first_T, indices_TK[:, slot], out=key_T)
    return _count_keys(keys_KT, (G + 1, E + 1))[1:, 1:]


def label_counts(
    trace: AnyTrace, labels: Callable[[RoutingTrace], npt.NDArray[np.integer[Any]]], size: int
) -> Int64Array:
    """[L,G,E] assignments of tokens with each of G = `size` labels to each expert.

    `labels` gives the label [T] of each token of a part of the trace, 0..G-1, or -1 to leave it out.
    """
    E = trace.num_experts
    counts_LGE = np.zeros((trace.num_layers, size, E), dtype=np.int64)
    for part in trace.parts():
        labels_T = labels(part)
        for counts_GE, indices_TK in zip(counts_LGE, part.router_indices, strict=True):
            counts_GE += grouped_counts(indices_TK, labels_T, (size, E))
    return counts_LGE


def expert_counts(trace: AnyTrace) -> Int64Array:
    """tokens_per_expert [L,E]: assignments to each expert."""
    if isinstance(trace, StoredTrace):
        counts: Int64Array = block_counts(trace).counts.sum(axis=1)
        return counts
    E = trace.num_experts
    counts_LE = np.zeros((trace.num_layers, E), dtype=np.int64)
    for indices_LTK in _token_chunks(trace):
        for counts_E, indices_TK in zip(counts_LE, indices_LTK, strict=True):
            counts_E += _count_keys(indices_TK.astype(np.intp) + 1, (E + 1,))[1:]
    return counts_LE


def domain_counts(trace: AnyTrace) -> Int64Array:
    """[L,M,E] assignments of each of the M domains' tokens to each expert."""
    if isinstance(trace, StoredTrace):
        parts, M = block_counts(trace), len(trace.domains)
        return np.stack([parts.counts[:, parts.domain_ids == m].sum(axis=1) for m in range(M)], axis=1)
    return label_counts(trace, lambda part: part.domain_ids, len(trace.domains))


def domain_tokens(trace: AnyTrace) -> Int64Array:
    """[M] tokens of each domain."""
    if isinstance(trace, StoredTrace):
        own = block_counts(trace)
        return np.bincount(own.domain_ids, own.tokens, minlength=len(trace.domains)).astype(np.int64)
    tokens_M = np.zeros(len(trace.domains), dtype=np.int64)
    for part in trace.parts():
        tokens_M += np.bincount(part.domain_ids, minlength=len(tokens_M))
    return tokens_M


def pair_counts(trace: AnyTrace) -> Int64Array:
    """[L,E,E] tokens that chose both experts, over all pairs of slots: symmetric, on the diagonal expert_counts."""
    E = trace.num_experts
    counts_LEE = np.zeros((trace.num_layers, E, E), dtype=np.int64)
    counts_LE = np.zeros((trace.num_layers, E), dtype=np.int64)
    for indices_LTK in _token_chunks(trace):
        for row, indices_TK in enumerate(indices_LTK):
            columns_KT = slot_columns(indices_TK)
            counts_LE[row] += _count_keys(columns_KT, (E + 1,))[1:]
            for slot in range(1, trace.top_k):
                counts_LEE[row] += joint_counts(columns_KT[slot - 1 : slot], columns_KT[slot:], E)
    counts_LEE += counts_LEE.transpose(0, 2, 1).copy()
    counts_LEE[:, np.arange(E), np.arange(E)] = counts_LE
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
    size = max(_CHUNK_TOKENS, trace.num_experts**2)  # many counts would cost more to add up than few tokens to count
    for part in trace.parts():
        for start in range(0, part.num_tokens, size):
            yield part.router_indices[:, start : start + size]


def slot_columns(indices_TK: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.intp]:
    """[K,T] each slot's experts in one piece, 1..E, 0 = unused; in the type that bincount takes as it is."""
    columns_KT = indices_TK.T.astype(np.intp, order="C")
    columns_KT += 1
    return columns_KT


def grouped_joint_counts(
    rows_KT: npt.NDArray[np.intp], columns_KT: npt.NDArray[np.intp], groups_T: Int64Array, shape: tuple[int, int]
) -> Int64Array:
    """[G,E,E] joint_counts of the tokens of each group; `shape` is (G, E)."""
    G, E = shape
    counts = np.zeros((G, E + 1, E + 1), dtype=np.int64)
    size = max(_CHUNK_TOKENS, counts.size // len(rows_KT))
    for start in range(0, rows_KT.shape[1], size):
        own = slice(start, start + size)
        first_KT = (groups_T[own] * (E + 1) + rows_KT[:, own]) * (E + 1)
        counts += _count_keys(first_KT[:, None] + columns_KT[None, :, own], counts.shape)
    return counts[:, 1:, 1:]


def joint_counts(rows_KT: npt.NDArray[np.intp], columns_KT: npt.NDArray[np.intp], E: int) -> Int64Array:
    """[E,E] how often a token has one expert in `rows_KT` and the other in `columns_KT`, over all pairs of slots."""
    counts = np.zeros((E + 1, E + 1), dtype=np.int64)
    for row_T in rows_KT:
        counts += _count_keys(row_T * (E + 1) + columns_KT, counts.shape)
    return counts[1:, 1:]


def _count_keys(keys: npt.NDArray[np.intp], shape: tuple[int, ...]) -> Int64Array:
    """How often each place of an array of this shape, counted row by row, occurs among `keys`."""
    return np.bincount(keys.reshape(-1), minlength=math.prod(shape)).reshape(shape).astype(np.int64, copy=False)


@dataclass(frozen=True)
class Blocks:
    """Blocks of tokens that are independent of one another: a source, or its part in one domain.

    `of_token` [T] block number of each token; `source_ids`, `domain_ids` [N] of each block; `tokens` [N] its size.
    Blocks are in the order of source, then domain.
    """

    of_token: Int64Array
    source_ids: Int64Array
    domain_ids: Int64Array
    tokens: Int64Array


def blocks(trace: RoutingTrace, groups: int | None = None) -> Blocks:
    """Cut a trace into blocks. Domains are labels of blocks, which is what a permutation may shuffle. With `groups`,
    a source is one of that many random groups of sources.
    """
    sources_T = trace.source_ids.astype(np.int64) if groups is None else random_groups(trace.source_ids, groups)
    return _blocks_of(trace, sources_T)


def _blocks_of(trace: RoutingTrace, sources_T: Int64Array) -> Blocks:
    M = len(trace.domains)
    keys_T = sources_T * M + trace.domain_ids
    # Tokens of a source mostly stand together: sorting their runs is much less than sorting them.
    starts = np.flatnonzero(np.diff(keys_T, prepend=keys_T[0] - 1))
    lengths = np.diff(starts, append=len(keys_T))
    keys_N, of_run = np.unique(keys_T[starts], return_inverse=True)
    tokens_N = np.zeros(len(keys_N), dtype=np.int64)
    np.add.at(tokens_N, of_run, lengths)
    return Blocks(np.repeat(of_run, lengths).astype(np.int64, copy=False), keys_N // M, keys_N % M, tokens_N)


def whole_sources(trace: RoutingTrace) -> Blocks:
    """A block is a source, of the domain that most of its tokens have: for what compares sources, not domains."""
    parts = blocks(trace)
    source_ids_N, of_part = np.unique(parts.source_ids, return_inverse=True)
    tokens_NM = np.zeros((len(source_ids_N), len(trace.domains)), dtype=np.int64)
    np.add.at(tokens_NM, (of_part, parts.domain_ids), parts.tokens)
    of_token = of_part[parts.of_token].astype(np.int64, copy=False)
    return Blocks(of_token, source_ids_N, tokens_NM.argmax(axis=1), tokens_NM.sum(axis=1))


@dataclass(frozen=True)
class BlockCounts:
    """What a resampling of blocks needs: `source_ids`, `domain_ids`, `tokens` [N] and `counts` [L,N,E] of each block.

    In the order of `Blocks`, whatever the parts the trace came in. Where there are too many sources, a block is a
    random group of them that are of one domain, and `source_ids` are numbers of groups.
    """

    source_ids: Int64Array
    domain_ids: Int64Array
    tokens: Int64Array
    counts: Int64Array


def block_counts(trace: AnyTrace) -> BlockCounts:
    """Assignments of each block to each expert; a source that several parts have tokens of is one block.

    Of more than MAX_BLOCKS blocks (fewer where layers and experts are many) those of a domain are put together at
    random, by a hash of the source's number. Groups of independent sources are independent too, so a resampling or
    shuffle of groups is as valid; and how much sources differ shows in thousands of groups as it does in millions.
    """
    if isinstance(trace, StoredTrace):
        return trace.once(("block_counts", MAX_BLOCKS, MAX_BLOCK_COUNTS), lambda: _block_counts(trace))
    return _block_counts(trace)


def has_few_sources(trace: AnyTrace) -> bool:
    """Are there too few sources to tell from how much they differ? Then there is stretch_counts."""
    return trace.count_sources() < MIN_FREEDOM + len(trace.domains)


def stretch_counts(trace: AnyTrace) -> tuple[BlockCounts, Int64Array]:
    """block_counts with every block cut where a stretch of the text ends, and the stretch [N] that each part is of.

    For a text of few sources: at most STRETCHES stretches a domain, of STRETCH_TOKENS tokens or more, in the order of
    the trace. Neighbours are alike only as far as runs go, so that long stretches are nearly independent of each other.
    """
    S = max(1, min(trace.num_tokens // STRETCH_TOKENS, STRETCHES * len(trace.domains)))
    if isinstance(trace, StoredTrace):
        parts = trace.once(("stretch_counts", S), lambda: _stretch_counts(trace, S))
    else:
        parts = _stretch_counts(trace, S)
    return BlockCounts(parts.source_ids // S, parts.domain_ids, parts.tokens, parts.counts), parts.source_ids % S


def _stretch_counts(trace: AnyTrace, S: int) -> BlockCounts:
    """As block_counts, source_ids being source times S plus stretch."""
    found: list[BlockCounts] = []
    start = 0
    for part in trace.parts():
        stretch_T = np.arange(start, start + part.num_tokens) * S // trace.num_tokens
        found.append(_counted(part, _blocks_of(part, part.source_ids.astype(np.int64) * S + stretch_T)))
        start += part.num_tokens
    return found[0] if len(found) == 1 else _merged_blocks(found)


def _counted(part: RoutingTrace, own: Blocks) -> BlockCounts:
    shape = (len(own.tokens), part.num_experts)
    counts_LNE = np.stack([grouped_counts(layer_TK, own.of_token, shape) for layer_TK in part.router_indices])
    return BlockCounts(own.source_ids, own.domain_ids, own.tokens, counts_LNE)


def _block_counts(trace: AnyTrace) -> BlockCounts:
    if isinstance(trace, StoredTrace) and has_few_sources(trace):
        return _merged_blocks([stretch_counts(trace)[0]])  # both are asked for, and the file is read once
    most = _most_blocks(trace)
    groups = _hash_groups(trace)
    found: list[BlockCounts] = []
    for part in trace.parts():
        found.append(_counted(part, blocks(part, groups)))
        if len(found) > 1 and sum(len(one.tokens) for one in found) > 2 * most:
            found = [_merged_blocks(found)]  # sources that come again in every part would be held as often
    return found[0] if len(found) == 1 else _merged_blocks(found)


def _most_blocks(trace: AnyTrace) -> int:
    return max(_MIN_BLOCKS, min(MAX_BLOCKS, MAX_BLOCK_COUNTS // (trace.num_layers * trace.num_experts)))


def _hash_groups(trace: AnyTrace) -> int | None:
    """How many random groups the sources are counted in; None where each is counted on its own."""
    most = _most_blocks(trace)
    return most // len(trace.domains) or 1 if trace.count_sources() > most else None


@dataclass(frozen=True)
class SourceDomains:
    """Which domain each source of a trace is of. Axis: S sources."""

    keys: Int64Array
    """[S] ascending: the source's id; where sources are too many to be held, a number of random sources and a domain.
    """
    domain: Int64Array
    """[S] its domain, or M, the number of domains, where it has text of several."""
    hashed: int | None
    """How many numbers stand for the sources; None where keys are ids."""

    def find(self, part: RoutingTrace) -> Int64Array:
        """[T] place of each token's source."""
        keys_T = part.source_ids.astype(np.int64)
        if self.hashed is not None:
            keys_T = random_groups(keys_T, self.hashed) * len(part.domains) + part.domain_ids
        # Tokens of a source mostly stand together: a search for each of their runs is much less than for each token.
        starts = np.flatnonzero(np.diff(keys_T, prepend=keys_T[0] - 1))
        places = np.searchsorted(self.keys, keys_T[starts]).astype(np.int64, copy=False)
        return np.repeat(places, np.diff(starts, append=len(keys_T)))


def source_domains(trace: AnyTrace) -> SourceDomains:
    """The sources of a trace, in one reading of a stored one, which block_counts shares."""
    M, hashed = len(trace.domains), _hash_groups(trace)
    parts = block_counts(trace) if isinstance(trace, StoredTrace) else blocks(trace, hashed)
    if hashed is not None:
        return SourceDomains(parts.source_ids * M + parts.domain_ids, parts.domain_ids, hashed)
    keys, first, own = np.unique(parts.source_ids, return_index=True, return_counts=True)
    return SourceDomains(keys, np.where(own > 1, M, parts.domain_ids[first]), None)


def random_groups(source_ids_T: npt.NDArray[np.integer[Any]], groups: int) -> Int64Array:
    """[T] a group, 0..groups-1, that a source's number has nothing to do with, but always the same (splitmix64)."""
    mixed = source_ids_T.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return ((mixed ^ (mixed >> np.uint64(31))) % np.uint64(groups)).astype(np.int64)


def _merged_blocks(found: list[BlockCounts]) -> BlockCounts:
    sources, domains, tokens = (
        np.concatenate([getattr(one, name) for one in found]) for name in ("source_ids", "domain_ids", "tokens")
    )
    order = np.lexsort((domains, sources))
    sources, domains = sources[order], domains[order]
    starts = np.flatnonzero((np.diff(sources, prepend=sources[0] - 1) != 0) | (np.diff(domains, prepend=-1) != 0))
    counts_LNE = np.concatenate([one.counts for one in found], axis=1)[:, order]
    return BlockCounts(
        sources[starts],
        domains[starts],
        np.add.reduceat(tokens[order], starts),
        np.add.reduceat(counts_LNE, starts, axis=1),
    )


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
    total = np.broadcast_to(np.einsum("...e->...", weights, dtype=np.float64)[..., None], weights.shape)
    result: Float64Array = np.divide(weights, total, out=np.full(weights.shape, empty), where=total > 0)
    return result
