"""Do neighbouring tokens share experts? Null: the tokens of every document in random order."""

from __future__ import annotations

from math import comb
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from moe_core.routing.measures.against_chance import (
    Sampled,
    against_null,
    finding_of,
    interval_words,
    layers_verdict,
    tested,
)
from moe_core.routing.measures.chance import chance_of_sharing
from moe_core.routing.measures.measure import Bars, Plant, RandomRouting
from moe_core.routing.measures.term import Term
from moe_core.routing.measures.tokens import consecutive
from moe_core.routing.measures.used import used
from moe_core.routing.statistics.information import Estimate
from moe_core.routing.statistics.jackknife import Groups, source_groups
from moe_core.routing.statistics.permutation import Documents, check_permutations, documents, whole_and_sample
from moe_core.routing.trace.shares import ratio
from moe_core.routing.trace.trace import AnyTrace, RoutingTrace
from moe_core.routing.trace.types import BoolArray, Float64Array, Int16Array, Int64Array
from moe_core.words import percent


def persistence(trace: AnyTrace) -> pd.DataFrame:
    """How often consecutive tokens of a document go to the same expert (Mixtral, 2401.04088, table 5).

    The first choice of a token is its slot with the largest score. Tokens without any expert are left out.
    Columns: layer; pairs (consecutive positions of one document); first = P(both have the same first choice), 0..1;
    any = P(their experts overlap), 0..1;
    chance_first = sum of the squared shares of first choices, chance_any = P(two independent tokens overlap), both of
    independent tokens with this layer's load (see chance_of_sharing), since uneven load alone makes neighbours alike;
    uniform_first = 1/E, uniform_any = 1 - C(E-K, K) / C(E, K): the same for even load.
    """
    E, K = trace.num_experts, trace.top_k
    rows = []
    for layer, counts in zip(trace.layers, _count_layers(trace), strict=True):
        pairs, first, shared = counts.pairs
        sizes_S = counts.sizes.astype(np.float64)
        sizes_S[0] = 0.0
        tokens = sizes_S.sum()
        rows.append(
            {
                "layer": layer,
                "pairs": int(pairs),
                "first": float(ratio(first, pairs)),
                "any": float(ratio(shared, pairs)),
                "chance_first": float((ratio(counts.first_choices, tokens) ** 2).sum()),
                "chance_any": chance_of_sharing(counts.chosen / tokens, sizes_S / tokens) if tokens else np.nan,
                "uniform_first": 1 / E,
                "uniform_any": 1 - comb(E - K, K) / comb(E, K),
            }
        )
    return pd.DataFrame(rows)


def first_choice(trace: RoutingTrace, row: int) -> Int16Array:
    """[T] the expert with the largest score in layer `row` of the L axis (the first slot on a tie); -1 = none."""
    indices_TK, scores_TK = trace.router_indices[row], trace.router_scores[row]
    best_T = np.where(indices_TK[:, 0] < 0, -np.inf, scores_TK[:, 0])
    choice_T: Int16Array = indices_TK[:, 0].copy()
    for k in range(1, trace.top_k):
        better_T = (indices_TK[:, k] >= 0) & (scores_TK[:, k] > best_T)
        choice_T[better_T] = indices_TK[better_T, k]
        best_T[better_T] = scores_TK[better_T, k]
    return choice_T


def shared_experts(one_TK: npt.NDArray[np.integer], other_TK: npt.NDArray[np.integer]) -> Int64Array:
    """[T] how many experts each token has in both choices; unused slots (-1) are none."""
    shared_T = np.zeros(len(one_TK), dtype=np.int64)
    for i in range(one_TK.shape[1]):
        own_T = one_TK[:, i]
        found_T: BoolArray = own_T == other_TK[:, 0]
        for k in range(1, other_TK.shape[1]):
            found_T |= own_T == other_TK[:, k]
        shared_T += found_T & (own_T >= 0)
    return shared_T


class _PersistenceCounts:
    """What persistence of one layer is made of; sums over parts."""

    def __init__(self, E: int, K: int) -> None:
        self.pairs: Int64Array = np.zeros(3, dtype=np.int64)
        """All pairs, those with one first choice, those with an expert in common."""
        self.sizes: Int64Array = np.zeros(K + 1, dtype=np.int64)
        """[K+1] tokens with 0, 1, .. K experts."""
        self.chosen: Float64Array = np.zeros(E)
        """[E] tokens that chose each expert."""
        self.first_choices: Int64Array = np.zeros(E, dtype=np.int64)
        """[E] tokens with each first choice."""

    def add(self, trace: RoutingTrace, row: int, earlier_P: Int64Array, later_P: Int64Array) -> None:
        indices_TK, first_T = trace.router_indices[row], first_choice(trace, row)
        routed_P = (first_T[earlier_P] >= 0) & (first_T[later_P] >= 0)
        same_P = first_T[earlier_P] == first_T[later_P]
        shared_P = shared_experts(indices_TK[earlier_P], indices_TK[later_P]) > 0
        self.pairs += [routed_P.sum(), (same_P & routed_P).sum(), shared_P.sum()]
        E, K = len(self.chosen), trace.top_k
        used_T = np.zeros(len(indices_TK), dtype=np.intp)
        for k in range(K):  # slot by slot: numpy is slow along a short axis
            used_T += indices_TK[:, k] >= 0
        self.sizes += np.bincount(used_T, minlength=K + 1)
        self.chosen += np.bincount((indices_TK + 1).reshape(-1), minlength=E + 1)[1:]
        self.first_choices += np.bincount(first_T + 1, minlength=E + 1)[1:]


def _count_layers(trace: AnyTrace) -> list[_PersistenceCounts]:
    layers = [_PersistenceCounts(trace.num_experts, trace.top_k) for _ in trace.layers]
    for part in trace.parts():
        earlier_P, later_P = consecutive(part)
        for row, counts in enumerate(layers):
            counts.add(part, row, earlier_P, later_P)
    return layers


PERSISTENCE_FINDING = finding_of("keeps the expert of the token before", "more often")
# Share of neighbours above chance from which runs of one expert can be seen in text. Measured on the demo run's probe:
# 0.00-0.03 in the untrained model, 0.07-0.13 in the trained one.
CLEAR_EFFECT = 0.05

NO_NEIGHBOURS = "cannot be tested: no two tokens are neighbours"


def persistence_test(trace: AnyTrace, permutations: int = 200, seed: int = 0) -> pd.DataFrame:
    """metrics.persistence against shuffled documents: do neighbouring tokens keep their first expert?

    The null keeps every document's own load, which alone makes neighbours alike, and breaks the order of its tokens.
    Columns, one row per layer: layer, first (P that a token's first choice is that of the token before, 0..1, over all
    tokens); null_mean (its exact expectation over all orders of the documents), null_p99, p_value, p_adjusted, effect;
    estimate = first, which has no bias, with its interval low, high; tokens, documents and what else `used` says;
    verdict: clearly from an effect of CLEAR_EFFECT. Of a large trace the p-value is of a sample of whole documents.
    """
    check_permutations(permutations)
    trace, sample = whole_and_sample(trace, seed)
    texts, rng = documents(sample), np.random.default_rng(seed)
    first_LT = np.stack([first_choice(sample, row) for row in range(trace.num_layers)])[:, texts.order]
    pairs_L, same_L = (which.sum(axis=1) for which in _neighbour_pairs(first_LT, texts.next))
    of_sample_L = ratio(same_L, pairs_L)
    null_PL = np.empty((permutations, trace.num_layers))
    for null_L in null_PL:
        pairs, same = _neighbour_pairs(first_LT[:, texts.shuffle(rng)], texts.next)
        null_L[:] = ratio(np.count_nonzero(same, axis=1), np.count_nonzero(pairs, axis=1))
    sums = _Neighbours.of(trace, seed)
    return tested(
        {"layer": trace.layers, "first": sums.value()},
        null_PL,
        sums.estimate(),
        finding=PERSISTENCE_FINDING,
        clear_effect=CLEAR_EFFECT,
        untestable=[NO_NEIGHBOURS if not pairs else "" for pairs in pairs_L],
        sampled=Sampled(of_sample_L, sums.null()),
        used=used(trace, sample),
    )


class _Neighbours(NamedTuple):
    """Sums over all tokens by group of sources. Axes: L layers, G groups."""

    groups: Groups
    pairs: Int64Array
    """[L,G] neighbours with an expert each."""
    same: Int64Array
    """[L,G] those with the same first choice."""
    shuffled_pairs: Float64Array
    """[L] pairs to expect if the tokens of every document stood in random order."""
    shuffled_same: Float64Array
    """[L]"""

    @classmethod
    def of(cls, trace: AnyTrace, seed: int) -> _Neighbours:
        sources, L = source_groups(trace, seed), trace.num_layers
        pairs_LG, same_LG = np.zeros((2, L, sources.groups.count), dtype=np.int64)
        shuffled_2L = np.zeros((2, L))
        for part in trace.parts():
            texts = documents(part)
            group_T = sources.label(part)[texts.order][:-1]
            neighbours_D = np.bincount(texts.of_token[:-1][texts.next], minlength=len(texts.sizes))
            for row in range(L):
                first_T = first_choice(part, row)[texts.order]
                both = _neighbour_pairs(first_T[None], texts.next)
                for sums_LG, which_1T in zip((pairs_LG, same_LG), both, strict=True):
                    sums_LG[row] += np.bincount(group_T[which_1T[0]], minlength=sums_LG.shape[1])
                shuffled_2L[:, row] += _expected_neighbours(first_T, texts, neighbours_D, trace.num_experts)
        return cls(sources.groups, pairs_LG, same_LG, *shuffled_2L)

    def value(self) -> Float64Array:
        return ratio(self.same.sum(axis=1), self.pairs.sum(axis=1))

    def null(self) -> Float64Array:
        return ratio(self.shuffled_same, self.shuffled_pairs)

    def estimate(self) -> Estimate:
        value_L = self.value()
        left_out_GL = ratio(*(self.groups.without_each(sums_LG.T) for sums_LG in (self.same, self.pairs)))
        return Estimate(value_L, *self.groups.interval(value_L, left_out_GL))


def _expected_neighbours(
    first_T: Int16Array, texts: Documents, neighbours_D: Int64Array, E: int
) -> tuple[float, float]:
    """(pairs, pairs of one choice) to expect at the places of neighbours if every document's tokens were shuffled.

    Two places of a document of n tokens, c of which have an expert and c_e expert e, hold a pair with probability
    c (c - 1) / (n (n - 1)) and one of the same choice with sum over e of c_e (c_e - 1) / (n (n - 1)).
    """
    D = len(texts.sizes)
    keys = texts.of_token * (E + 1) + first_T.astype(np.int64) + 1
    kinds, tokens = np.unique(keys, return_counts=True)
    document, routed = kinds // (E + 1), kinds % (E + 1) > 0
    chosen_D = np.bincount(document[routed], tokens[routed], minlength=D)
    same_D = np.bincount(document[routed], (tokens * (tokens - 1))[routed], minlength=D)
    places_D = neighbours_D / np.maximum(texts.sizes * (texts.sizes - 1.0), 1.0)
    return float((places_D * chosen_D * (chosen_D - 1)).sum()), float((places_D * same_D).sum())


def _neighbour_pairs(first_LT: Int16Array, next_T: BoolArray) -> tuple[BoolArray, BoolArray]:
    """[L,T-1] is it a pair of neighbours with an expert each, and is it the same one?"""
    routed = first_LT >= 0
    pairs = routed[:, 1:] & routed[:, :-1] & next_T
    return pairs, pairs & (first_LT[:, 1:] == first_LT[:, :-1])


def persistence_verdict(test: pd.DataFrame) -> str:
    """Do neighbouring tokens keep their expert? From baselines.persistence, all layers or the rows of one."""

    def size(row: pd.Series[Any]) -> str:
        return f"{interval_words(row, percent)} of neighbours against {percent(row['null_mean'])} in shuffled documents"

    return layers_verdict(
        test,
        PERSISTENCE_FINDING,
        size,
        clear="Neighbouring tokens keep the same first expert more often than chance",
        slight="Neighbouring tokens keep the same first expert only slightly more often than chance",
    )


TERMS = (
    Term(
        "persistence",
        "How often a token's first expert is that of the token before it.",
        "P(first choice of t = first choice of t + 1)",
        "the sum of f_e² when neighbours are independent, 1/E if load is even besides",
        "2401.04088, table 5",
    ),
    Term(
        "null of persistence",
        "The tokens of every document in random order: the document keeps its load.",
        "choices permuted within documents",
    ),
)


BARS = Bars(
    figure="persistence",
    title="Neighbouring tokens",
    axis="part of neighbouring tokens with the same first expert",
    sentence=lambda row: (
        f"Layer {row.layer}: {interval_words(row, percent)} of tokens have the same first expert as the "
        f"token before, {against_null(row)}: {row.verdict}."
    ),
)


def _plant_persistence(routing: RandomRouting) -> None:
    """A token prefers the first expert of the token before."""
    logits, layers = routing.logits, np.arange(len(routing.logits))
    for t in np.flatnonzero(np.diff(routing.document_ids) == 0) + 1:
        logits[layers, t, logits[:, t - 1].argmax(axis=-1)] += routing.strength


PLANT = Plant(_plant_persistence)
