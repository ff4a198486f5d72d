"""Sums of a token's number of experts over classes of tokens, as observed and as chance deals them.

Axes: L layers, T tokens, C classes, G groups of sources, N blocks, P permutations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moe_core.routing.statistics.information import Estimate
from moe_core.routing.statistics.jackknife import Groups, source_groups
from moe_core.routing.statistics.permutation import MOST_ROTATIONS, documents
from moe_core.routing.trace.blocks import blocks
from moe_core.routing.trace.shares import ratio
from moe_core.routing.trace.trace import AnyTrace, RoutingTrace
from moe_core.routing.trace.types import Float64Array, Int64Array

By = Literal["domain", "label"]


@dataclass(frozen=True)
class ClassSums:
    """Sums over the tokens of each class and group of sources."""

    labelling: str
    classes: list[str]
    groups: Groups
    top_k: int
    tokens: Float64Array
    """[G,C]"""
    sums: Float64Array
    """[L,G,C] experts that these tokens take."""
    squares: Float64Array
    """[L,G] sums of squares."""

    def explained(self) -> Float64Array:
        """[L] eta squared."""
        return _eta_squared(self.tokens.sum(axis=0), self.sums.sum(axis=1), self.squares.sum(axis=1))

    def spread(self) -> Float64Array:
        """[L] standard deviation over tokens of the mean of a token's class."""
        tokens_C, sums_LC = self.tokens.sum(axis=0), self.sums.sum(axis=1)
        spread_L: Float64Array = np.sqrt(np.maximum(_between(tokens_C, sums_LC), 0.0) / max(tokens_C.sum(), 1.0))
        return spread_L

    def estimate(self) -> Estimate:
        """Explained less its jackknife bias, with the interval."""
        C, rows = len(self.classes), []
        n_G = np.bincount(self.groups.stratum)[self.groups.stratum].astype(np.float64)
        for value, sums_GC, squares_G in zip(self.explained(), self.sums, self.squares, strict=True):
            left_GX = self.groups.without_each(np.concatenate([self.tokens, sums_GC, squares_G[:, None]], axis=1))
            left_G = np.array([_eta_squared(row[:C], row[None, C : 2 * C], row[2 * C :])[0] for row in left_GX])
            bias = float(((n_G - 1) / n_G * (left_G - value)).sum()) if self.groups.freedom > 0 else 0.0
            about = np.clip(np.array([value - bias]), 0.0, 1.0)
            low, high = self.groups.interval(np.array([value]), left_G[:, None], about)
            rows.append((about[0], low[0], high[0]))
        return Estimate(*np.array(rows, dtype=np.float64).reshape(-1, 3).T)


@dataclass(frozen=True)
class DrawnSums:
    """One layer: as observed in row 0, then in each draw of the null."""

    tokens: Float64Array
    """[1+P,C]"""
    sums: Float64Array
    """[1+P,C]"""
    square: float
    """Sum of squares over all tokens, which no draw changes."""

    def explained(self) -> Float64Array:
        """[1+P] eta squared."""
        return _eta_squared(self.tokens, self.sums, np.full(len(self.sums), self.square))


def numbers_of_experts(part: RoutingTrace) -> Float64Array:
    """[L,T] experts that compute of each token."""
    indices = part.router_indices
    counted: Float64Array = ((indices >= 0) & (indices < part.num_experts - part.null_experts)).sum(axis=-1) * 1.0
    return counted


def class_sums(trace: AnyTrace, by: By, seed: int = 0) -> ClassSums:
    own: AnyTrace = trace.by_label() if by == "label" else trace
    groups = source_groups(own, seed)
    C, G, L = len(own.domains), groups.groups.count, own.num_layers
    tokens_GC, sums_LGC, squares_LG = np.zeros((G, C)), np.zeros((L, G, C)), np.zeros((L, G))
    for part in own.parts():
        group_T = groups.label(part)
        place_T = group_T * C + part.domain_ids
        tokens_GC += np.bincount(place_T, minlength=G * C).reshape(G, C)
        for row, numbers_T in enumerate(numbers_of_experts(part)):
            sums_LGC[row] += np.bincount(place_T, numbers_T, minlength=G * C).reshape(G, C)
            squares_LG[row] += np.bincount(group_T, numbers_T**2, minlength=G)
    labelling = trace.labelling if by == "label" else "domain"
    return ClassSums(labelling, list(own.domains), groups.groups, own.top_k, tokens_GC, sums_LGC, squares_LG)


def mean_with_interval(
    groups: Groups, sums_GC: Float64Array, tokens_GC: Float64Array, top_k: int
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """(mean, low, high) [C]; no interval of what a single group of sources has."""
    value_C = ratio(sums_GC.sum(axis=0), tokens_GC.sum(axis=0))
    left_GC = ratio(groups.without_each(sums_GC), groups.without_each(tokens_GC))
    low_C, high_C = groups.interval(value_C, left_GC, limits=(0.0, float(top_k)))
    alone_C = (tokens_GC > 0).sum(axis=0) < 2
    return value_C, np.where(alone_C, np.nan, low_C), np.where(alone_C, np.nan, high_C)


def _between(tokens_C: Float64Array, sums_LC: Float64Array) -> Float64Array:
    """[L] sum over tokens of (mean of the token's class - mean)^2."""
    of_classes = np.nan_to_num(ratio(sums_LC**2, tokens_C)).sum(axis=-1)
    between_L: Float64Array = of_classes - ratio(sums_LC.sum(axis=-1) ** 2, tokens_C.sum(axis=-1))
    return between_L


def _eta_squared(tokens_C: Float64Array, sums_LC: Float64Array, squares_L: Float64Array) -> Float64Array:
    """[L] variance between classes / variance, 0..1; NaN where all tokens are alike."""
    total_L = squares_L - ratio(sums_LC.sum(axis=-1) ** 2, tokens_C.sum(axis=-1))
    total_L = np.where(total_L > 1e-9 * np.maximum(squares_L, 1.0), total_L, 0.0)
    return np.clip(ratio(_between(tokens_C, sums_LC), total_L), 0.0, 1.0)


def turned_sums(sample: RoutingTrace, permutations: int, seed: int) -> Iterator[DrawnSums]:
    """Layer by layer: the choices of every document turned round under its labels."""
    texts, C = documents(sample), len(sample.domains)
    labels_T = sample.domain_ids[texts.order].astype(np.int64)
    tokens_C = np.bincount(labels_T, minlength=C).astype(np.float64)
    for numbers_T in numbers_of_experts(sample):
        ordered_T, rng = numbers_T[texts.order], np.random.default_rng(seed)  # all layers share the rotations
        rows = [ordered_T, *(ordered_T[texts.rotation(rng)] for _ in range(permutations))]
        sums_PC = np.stack([_summed(labels_T, row_T, C) for row_T in rows])
        yield DrawnSums(np.tile(tokens_C, (len(rows), 1)), sums_PC, float((numbers_T**2).sum()))


def null_mean_of_all(whole: AnyTrace, found: ClassSums, seed: int) -> Float64Array:
    """[L] mean of explained over a few rotations of all tokens, part by part."""
    L, C = whole.num_layers, len(whole.domains)
    generators = [np.random.default_rng([seed, 4, draw]) for draw in range(MOST_ROTATIONS)]
    sums_PLC = np.zeros((MOST_ROTATIONS, L, C))
    for part in whole.parts():
        texts = documents(part)
        labels_T, numbers_LT = part.domain_ids[texts.order].astype(np.int64), numbers_of_experts(part)[:, texts.order]
        for sums_LC, rng in zip(sums_PLC, generators, strict=True):
            turned_T = texts.rotation(rng)
            for sums_C, numbers_T in zip(sums_LC, numbers_LT, strict=True):
                sums_C += _summed(labels_T, numbers_T[turned_T], C)
    tokens_C, squares_L = found.tokens.sum(axis=0), found.squares.sum(axis=1)
    mean_L: Float64Array = np.mean([_eta_squared(tokens_C, sums_LC, squares_L) for sums_LC in sums_PLC], axis=0)
    return mean_L


def block_sums(trace: AnyTrace) -> tuple[Int64Array, Float64Array, Float64Array, Float64Array]:
    """([N] domain, [N] tokens, [L,N] experts, [L] sum of squares) of the blocks: a source, or its part in a domain."""
    keys: list[Int64Array] = []
    tokens: list[Float64Array] = []
    sums: list[Float64Array] = []
    squares_L = np.zeros(trace.num_layers)
    M = len(trace.domains)
    for part in trace.parts():
        own, numbers_LT = blocks(part), numbers_of_experts(part)
        keys.append(own.source_ids * M + own.domain_ids)
        tokens.append(own.tokens.astype(np.float64))
        N = len(own.tokens)
        sums.append(np.stack([_summed(own.of_token, row_T, N) for row_T in numbers_LT]))
        squares_L += (numbers_LT**2).sum(axis=1)
    # A source may have tokens in several parts.
    keys_N, place = np.unique(np.concatenate(keys), return_inverse=True)
    N = len(keys_N)
    tokens_N = _summed(place, np.concatenate(tokens), N)
    sums_LN = np.stack([_summed(place, row, N) for row in np.concatenate(sums, axis=1)])
    return keys_N % M, tokens_N, sums_LN, squares_L


def dealt_sums(trace: AnyTrace, permutations: int, seed: int) -> Iterator[DrawnSums]:
    """Layer by layer: the domains of whole sources dealt anew, as many sources of each."""
    domain_N, tokens_N, sums_LN, squares_L = block_sums(trace)
    rng, C = np.random.default_rng(seed), len(trace.domains)
    labels = [domain_N, *(rng.permutation(domain_N) for _ in range(permutations))]
    tokens_PC = np.stack([_summed(own_N, tokens_N, C) for own_N in labels])
    for sums_N, square in zip(sums_LN, squares_L, strict=True):
        yield DrawnSums(tokens_PC, np.stack([_summed(own_N, sums_N, C) for own_N in labels]), float(square))


def _summed(places_T: Int64Array, values_T: Float64Array, size: int) -> Float64Array:
    """[size] the sum of the values at each place."""
    sums: Float64Array = np.bincount(places_T, values_T, minlength=size).astype(np.float64)
    return sums
