"""Blocks of independent tokens, and their counts: what a null shuffles and an interval leaves out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_core.routing.trace.kernels import grouped_counts, run_starts
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.routing.trace.trace import AnyRouting, AnyTrace, RoutingTrace, StoredTrace
from moe_core.routing.trace.types import Int64Array

MAX_BLOCKS, MAX_BLOCK_COUNTS = 2**15, 2**24
"""More sources than this, or so many that each one's counts would be more numbers than this (128 MiB), are counted in
random groups, see block_counts."""
_MIN_BLOCKS = 256
MIN_FREEDOM = 8
"""A text of fewer sources than this beyond one a domain has too few to tell from how much they differ."""
STRETCHES, STRETCH_TOKENS = 16, 32
"""Such a text is cut into so many stretches a domain, of at least so many tokens."""


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
    starts = run_starts(keys_T)
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


def block_counts(trace: AnyRouting) -> BlockCounts:
    """Assignments of each block to each expert; a source that several parts have tokens of is one block.
    Of counts, a block is a group, all steps together.

    Of more than MAX_BLOCKS blocks (fewer where layers and experts are many) those of a domain are put together at
    random, by a hash of the source's number. Groups of independent sources are independent too, so a resampling or
    shuffle of groups is as valid; and how much sources differ shows in thousands of groups as it does in millions.
    """
    if isinstance(trace, RoutingCounts):
        return _group_counts(trace, np.zeros(len(trace.steps), dtype=np.int64), 1)
    if isinstance(trace, StoredTrace):
        return trace.once(("block_counts", MAX_BLOCKS, MAX_BLOCK_COUNTS), lambda: _block_counts(trace))
    return _block_counts(trace)


def has_few_sources(trace: AnyRouting) -> bool:
    """Are there too few sources to tell from how much they differ? Then there is stretch_counts."""
    return trace.count_sources() < MIN_FREEDOM + len(trace.domains)


def stretch_counts(trace: AnyRouting) -> tuple[BlockCounts, Int64Array]:
    """block_counts with every block cut where a stretch of the text ends, and the stretch [N] that each part is of.

    For a text of few sources: at most STRETCHES stretches a domain, of STRETCH_TOKENS tokens or more, in the order of
    the trace. Neighbours are alike only as far as runs go, so that long stretches are nearly independent of each other.
    Of counts, a stretch is neighbouring steps. Counts of one step have no stretches: each source then stands for one.
    """
    S = max(1, min(trace.num_tokens // STRETCH_TOKENS, STRETCHES * len(trace.domains)))
    if isinstance(trace, RoutingCounts):
        if len(trace.steps) == 1:
            parts = block_counts(trace)
            return parts, parts.source_ids
        parts = _group_counts(trace, _stretch_of_step(trace, S), S)
    elif isinstance(trace, StoredTrace):
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


def _stretch_of_step(counts: RoutingCounts, S: int) -> Int64Array:
    """[steps] the stretch of each step, 0..S-1, of about equally many tokens each."""
    before = np.cumsum(counts.tokens.sum(axis=1)) - counts.tokens.sum(axis=1)
    stretch: Int64Array = before * S // max(int(counts.tokens.sum()), 1)
    return stretch.clip(max=S - 1)


def _group_counts(counts: RoutingCounts, stretch_S: Int64Array, stretches: int) -> BlockCounts:
    """Groups of counts as blocks cut into stretches of steps; source_ids are source times stretches plus stretch."""
    names = {group.source or (group.domain,): n for n, group in reversed(list(enumerate(counts.groups)))}
    number = {name: n for n, name in enumerate(sorted(names, key=lambda name: names[name]))}
    source_G = np.array([number[group.source or (group.domain,)] for group in counts.groups], dtype=np.int64)
    domain_G = np.array([counts.domains.index(group.domain) for group in counts.groups], dtype=np.int64)
    found = []
    for stretch in np.unique(stretch_S).tolist():
        own = stretch_S == stretch
        tokens_G = counts.tokens[own].sum(axis=0)
        with_text = tokens_G > 0
        counts_LGE = counts.tokens_per_expert[own].sum(axis=0)[:, with_text]
        sources = source_G[with_text] * stretches + stretch
        found.append(BlockCounts(sources, domain_G[with_text], tokens_G[with_text], counts_LGE))
    return _merged_blocks(found)


def _counted(part: RoutingTrace, own: Blocks) -> BlockCounts:
    counts_LNE = grouped_counts(part.router_indices, own.of_token, (len(own.tokens), part.num_experts))
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


def _most_blocks(trace: AnyRouting) -> int:
    return max(_MIN_BLOCKS, min(MAX_BLOCKS, MAX_BLOCK_COUNTS // (trace.num_layers * trace.num_experts)))


def _hash_groups(trace: AnyRouting) -> int | None:
    """How many random groups the sources are counted in; None where each is counted on its own."""
    if isinstance(trace, RoutingCounts):
        return None
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
        starts = run_starts(keys_T)
        places = np.searchsorted(self.keys, keys_T[starts]).astype(np.int64, copy=False)
        return np.repeat(places, np.diff(starts, append=len(keys_T)))


def source_domains(trace: AnyRouting) -> SourceDomains:
    """The sources of a trace, in one reading of a stored one, which block_counts shares."""
    M, hashed = len(trace.domains), _hash_groups(trace)
    parts = blocks(trace, hashed) if isinstance(trace, RoutingTrace) else block_counts(trace)
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
