"""Do experts specialise in tokens? Choices turned round in every document."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_core.routing.baselines.findings import VOCABULARY
from moe_core.routing.measures.against_chance import tested
from moe_core.routing.measures.tokens import TokenKind, token_ids_of, token_types
from moe_core.routing.statistics.bootstrap import RESAMPLES, units
from moe_core.routing.statistics.permutation import check_permutations, documents, sampled
from moe_core.routing.trace.counts import blocks, ratio
from moe_core.routing.trace.stored import AnyTrace
from moe_core.routing.trace.types import Float64Array, Int64Array

# One in twenty occurrences beyond chance. This is a size, not a sign of learning: on the demo run's probe the untrained
# router has 0.35-0.50, since it sees little but the token, and the trained one 0.32-0.46.
CLEAR_EFFECT = 0.05

_NUMBERS = 2**22  # counts in memory at once

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
    labels_T = types.label(token_ids_of(trace, which))[texts.order]
    counted = _Typed(labels_T, len(types.ids), trace.num_experts)
    slots_LKT = trace.router_indices.transpose(0, 2, 1)[:, :, texts.order].astype(np.int64) + 1
    value_L = counted.scores(slots_LKT)
    null_PL = np.stack([counted.scores(slots_LKT[:, :, texts.rotation(rng)]) for _ in range(permutations)])
    parts = blocks(trace)
    drawn = units(parts, seed)
    unit_T = drawn.of_block[parts.of_token[texts.order]]
    weights_RU = drawn.weights(RESAMPLES, np.random.default_rng([seed, 1]))
    resampled_RL = np.stack([counted.resampled(slots_KT, unit_T, weights_RU) for slots_KT in slots_LKT], axis=1)
    return tested(
        {"layer": trace.layers, "score": value_L},
        null_PL,
        drawn.interval(value_L, resampled_RL),
        finding=VOCABULARY,
        clear_effect=CLEAR_EFFECT,
        untestable=["" if counted.V else NO_TYPES] * trace.num_layers,
        tokens=trace.num_tokens,
        which=which,
        token_types=counted.V,
    )


class _Typed:
    """Tokens whose type occurs often enough. Axes: V types, X of their tokens (by type), U units, R resamples."""

    def __init__(self, labels_T: Int64Array, V: int, E: int) -> None:
        self.V, self._E = V, E
        own = np.flatnonzero((labels_T >= 0) & (labels_T < V))
        self._place = own[np.argsort(labels_T[own], kind="stable")]
        self._label = labels_T[self._place]
        self._tokens = np.bincount(self._label, minlength=V)

    def scores(self, slots_LKT: Int64Array) -> Float64Array:
        """[L] mean over types of the largest share of an expert; slots hold 1..E, 0 = unused. NaN without types."""
        size = self._E + 1
        row_X = self._label * size
        scores_L = np.empty(len(slots_LKT))
        for layer, slots_KT in enumerate(slots_LKT):
            keys_KX = slots_KT[:, self._place] + row_X
            counts_VE = np.bincount(keys_KX.reshape(-1), minlength=self.V * size).reshape(-1, size)[:, 1:]
            scores_L[layer] = ratio((counts_VE.max(axis=1) / self._tokens).sum(), self.V)
        return scores_L

    def resampled(self, slots_KT: Int64Array, unit_T: Int64Array, weights_RU: Float64Array) -> Float64Array:
        """[R] the score of one layer when unit u counts weights_RU[:, u] times; types nobody has then are left out."""
        R, U = weights_RU.shape
        size = self._E + 1
        total_R, types_R = np.zeros(R), np.zeros(R)
        together = max(1, _NUMBERS // (max(R, U) * size))
        for first in range(0, self.V, together):
            v = min(together, self.V - first)
            part = slice(*np.searchsorted(self._label, [first, first + v]))
            place_X, label_X = self._place[part], self._label[part] - first
            label_X += unit_T[place_X] * v
            keys_KX = slots_KT[:, place_X] + label_X * size
            counts_UX = np.bincount(keys_KX.reshape(-1), minlength=U * v * size).reshape(U, -1)
            tokens_UV = np.bincount(label_X, minlength=U * v).reshape(U, v)
            most_RV = (weights_RU @ counts_UX).reshape(R, v, size)[:, :, 1:].max(axis=2)
            tokens_RV = weights_RU @ tokens_UV
            total_R += np.divide(most_RV, tokens_RV, out=np.zeros_like(most_RV), where=tokens_RV > 0).sum(axis=1)
            types_R += (tokens_RV > 0).sum(axis=1)
        return ratio(total_R, types_R)
