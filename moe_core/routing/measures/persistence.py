"""Do neighbouring tokens share experts?"""

from __future__ import annotations

from math import comb

import numpy as np
import numpy.typing as npt
import pandas as pd

from moe_core.routing.measures.chance import chance_of_sharing
from moe_core.routing.measures.tokens import consecutive
from moe_core.routing.trace.counts import ratio
from moe_core.routing.trace.stored import AnyTrace
from moe_core.routing.trace.trace import RoutingTrace
from moe_core.routing.trace.types import BoolArray, Float64Array, Int16Array, Int64Array


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
    for layer, counts in zip(trace.layers, _count(trace), strict=True):
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


class _Counts:
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


def _count(trace: AnyTrace) -> list[_Counts]:
    layers = [_Counts(trace.num_experts, trace.top_k) for _ in trace.layers]
    for part in trace.parts():
        earlier_P, later_P = consecutive(part)
        for row, counts in enumerate(layers):
            counts.add(part, row, earlier_P, later_P)
    return layers
