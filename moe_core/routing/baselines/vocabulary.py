"""Do experts specialise in tokens? Choices turned round in every document."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_core.routing.baselines.findings import VOCABULARY
from moe_core.routing.baselines.resampling import RESAMPLES, units
from moe_core.routing.baselines.shuffles import documents, sampled
from moe_core.routing.baselines.significance import check_permutations, tested
from moe_core.routing.counts import blocks, ratio
from moe_core.routing.metrics.tokens import TokenKind, token_ids_of, token_types
from moe_core.routing.stored import AnyTrace
from moe_core.routing.types import Float64Array, Int64Array

CLEAR_EFFECT = 0.05

NO_TYPES = "cannot be tested: no token occurs often enough"


def vocabulary(
    trace: AnyTrace, which: TokenKind = "input", min_count: int = 10, permutations: int = 200, seed: int = 0
) -> pd.DataFrame:
    """metrics.vocabulary_specialization against choices made without looking at the token.

    Score of a layer: how much of a token type its favourite expert takes, averaged over the types that occur at least
    `min_count` times (OLMoE, 2409.02060, eq. 8). Null: within every document the choices are turned round by a random
    distance, so that loads, sets of experts and runs stay as they are, only the tokens are others.
    Columns, one row per layer: layer, score (0..1); null_mean, null_p99, p_value, p_adjusted, effect, low, high,
    tokens, verdict as in baselines.persistence; which; token_types.
    Raises TraceError and UsageError as the measure does.
    """
    check_permutations(permutations)
    trace = sampled(trace, seed)
    types = token_types(trace, which, min_count)
    texts, rng = documents(trace), np.random.default_rng(seed)
    V, E = len(types.ids), trace.num_experts + 1
    labels_T = types.label(token_ids_of(trace, which))[texts.order]
    # Where there is no type, or a rare one, nothing is counted: those rows are cut off.
    rows_T = np.where(labels_T < 0, V, labels_T) * E
    slots_LKT = trace.router_indices.transpose(0, 2, 1)[:, :, texts.order].astype(np.int64) + 1

    def scores(rows_T: Int64Array, slots_LKT: Int64Array, weights_T: Float64Array | None = None) -> list[Float64Array]:
        return [_score(rows_T, slots_KT, (V + 1, E), weights_T) for slots_KT in slots_LKT]

    value_L = np.array(scores(rows_T, slots_LKT))
    null_PL = np.array([scores(rows_T, slots_LKT[:, :, texts.rotation(rng)]) for _ in range(permutations)])
    parts = blocks(trace)
    drawn = units(parts, seed)
    unit_T = drawn.of_block[parts.of_token[texts.order]]
    weights_RU = drawn.weights(RESAMPLES, np.random.default_rng([seed, 1]))
    resampled_RL = np.array([scores(rows_T, slots_LKT, weights_U[unit_T]) for weights_U in weights_RU])
    return tested(
        {"layer": trace.layers, "score": value_L},
        null_PL,
        drawn.interval(value_L, resampled_RL),
        finding=VOCABULARY,
        clear_effect=CLEAR_EFFECT,
        untestable=["" if V else NO_TYPES] * trace.num_layers,
        tokens=trace.num_tokens,
        which=which,
        token_types=V,
    )


def _score(
    rows_T: Int64Array, slots_KT: Int64Array, shape: tuple[int, int], weights_T: Float64Array | None
) -> Float64Array:
    """Mean over token types of the largest share of an expert; NaN without types. `shape` is (V + 1, E + 1)."""
    V = shape[0] - 1
    keys = (rows_T + slots_KT).reshape(-1)
    weights = None if weights_T is None else np.tile(weights_T, len(slots_KT))
    counts_VE = np.bincount(keys, weights, minlength=shape[0] * shape[1]).reshape(shape)[:V, 1:]
    tokens_V = np.bincount(rows_T // shape[1], weights_T, minlength=V + 1)[:V]
    present = tokens_V > 0
    return ratio((counts_VE[present].max(axis=1) / tokens_V[present]).sum(), float(present.sum()))
