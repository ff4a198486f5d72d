"""Do neighbouring tokens share experts? Null: the tokens of every document in random order."""

from __future__ import annotations

from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from moe_core.routing.measures.against_chance import against_null, finding_of, layers_verdict, tested
from moe_core.routing.measures.chance import chance_of_sharing
from moe_core.routing.measures.measure import Bars, Plant, RandomRouting
from moe_core.routing.measures.term import Term
from moe_core.routing.measures.tokens import consecutive
from moe_core.routing.statistics.bootstrap import RESAMPLES, units
from moe_core.routing.statistics.permutation import check_permutations, documents, sampled
from moe_core.routing.trace.counts import blocks, ratio
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
    Columns, one row per layer: layer, first (P that a token's first choice is that of the token before, 0..1); and as
    in every baseline of this kind null_mean, null_p99, p_value, p_adjusted, effect, low, high, tokens (looked at; of a
    larger trace a sample of whole documents), verdict: clearly from an effect of CLEAR_EFFECT.
    """
    check_permutations(permutations)
    trace = sampled(trace, seed)
    texts, rng = documents(trace), np.random.default_rng(seed)
    first_LT = np.stack([first_choice(trace, row) for row in range(trace.num_layers)])[:, texts.order]
    pairs_T, same_T = _neighbour_pairs(first_LT, texts.next)
    value_L = ratio(same_T.sum(axis=1), pairs_T.sum(axis=1))
    null_PL = np.empty((permutations, trace.num_layers))
    for null_L in null_PL:
        pairs, same = _neighbour_pairs(first_LT[:, texts.shuffle(rng)], texts.next)
        null_L[:] = ratio(np.count_nonzero(same, axis=1), np.count_nonzero(pairs, axis=1))
    parts = blocks(trace)
    drawn = units(parts, seed)
    of_pair = drawn.of_block[parts.of_token[texts.order[:-1]]]
    weights_RU = drawn.weights(RESAMPLES, np.random.default_rng([seed, 1]))
    of_unit = [_per_unit(which, of_pair, drawn.count) for which in (same_T, pairs_T)]
    resampled_RL = ratio(*(weights_RU @ counts_LU.T for counts_LU in of_unit))
    return tested(
        {"layer": trace.layers, "first": value_L},
        null_PL,
        drawn.interval(value_L, resampled_RL),
        finding=PERSISTENCE_FINDING,
        clear_effect=CLEAR_EFFECT,
        tokens=trace.num_tokens,
        untestable=[NO_NEIGHBOURS if not pairs.any() else "" for pairs in pairs_T],
    )


def _neighbour_pairs(first_LT: Int16Array, next_T: BoolArray) -> tuple[BoolArray, BoolArray]:
    """[L,T-1] is it a pair of neighbours with an expert each, and is it the same one?"""
    routed = first_LT >= 0
    pairs = routed[:, 1:] & routed[:, :-1] & next_T
    return pairs, pairs & (first_LT[:, 1:] == first_LT[:, :-1])


def _per_unit(which_LT: BoolArray, unit_T: Int64Array, count: int) -> Int64Array:
    return np.stack([np.bincount(unit_T[which], minlength=count) for which in which_LT])


def persistence_verdict(test: pd.DataFrame) -> str:
    """Do neighbouring tokens keep their expert? From baselines.persistence, all layers or the rows of one."""

    def size(row: pd.Series[Any]) -> str:
        return f"{percent(row['first'])} of neighbours against {percent(row['null_mean'])} in shuffled documents"

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
    question="Does a token keep the expert of the token before it?",
    axis="part of neighbouring tokens with the same first expert",
    sentence=lambda row: (
        f"Layer {row.layer}: {percent(row.first)} of tokens have the same first expert as the token before, "
        f"{against_null(row)}: {row.verdict}."
    ),
)


def _plant_persistence(routing: RandomRouting) -> None:
    """A token prefers the first expert of the token before."""
    logits, layers = routing.logits, np.arange(len(routing.logits))
    for t in np.flatnonzero(np.diff(routing.document_ids) == 0) + 1:
        logits[layers, t, logits[:, t - 1].argmax(axis=-1)] += routing.strength


PLANT = Plant(_plant_persistence)
