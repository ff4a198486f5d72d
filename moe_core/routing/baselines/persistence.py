"""Do neighbouring tokens keep their expert? Documents shuffled."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_core.routing.baselines.findings import PERSISTENCE
from moe_core.routing.measures.against_chance import tested
from moe_core.routing.measures.persistence import first_choice
from moe_core.routing.statistics.bootstrap import RESAMPLES, units
from moe_core.routing.statistics.permutation import check_permutations, documents, sampled
from moe_core.routing.trace.counts import blocks, ratio
from moe_core.routing.trace.stored import AnyTrace
from moe_core.routing.trace.types import BoolArray, Int16Array, Int64Array

# Share of neighbours above chance from which runs of one expert can be seen in text. Measured on the demo run's probe:
# 0.00-0.03 in the untrained model, 0.07-0.13 in the trained one.
CLEAR_EFFECT = 0.05

NO_NEIGHBOURS = "cannot be tested: no two tokens are neighbours"


def persistence(trace: AnyTrace, permutations: int = 200, seed: int = 0) -> pd.DataFrame:
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
    pairs_T, same_T = _pairs(first_LT, texts.next)
    value_L = ratio(same_T.sum(axis=1), pairs_T.sum(axis=1))
    null_PL = np.empty((permutations, trace.num_layers))
    for null_L in null_PL:
        pairs, same = _pairs(first_LT[:, texts.shuffle(rng)], texts.next)
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
        finding=PERSISTENCE,
        clear_effect=CLEAR_EFFECT,
        tokens=trace.num_tokens,
        untestable=[NO_NEIGHBOURS if not pairs.any() else "" for pairs in pairs_T],
    )


def _pairs(first_LT: Int16Array, next_T: BoolArray) -> tuple[BoolArray, BoolArray]:
    """[L,T-1] is it a pair of neighbours with an expert each, and is it the same one?"""
    routed = first_LT >= 0
    pairs = routed[:, 1:] & routed[:, :-1] & next_T
    return pairs, pairs & (first_LT[:, 1:] == first_LT[:, :-1])


def _per_unit(which_LT: BoolArray, unit_T: Int64Array, count: int) -> Int64Array:
    return np.stack([np.bincount(unit_T[which], minlength=count) for which in which_LT])
