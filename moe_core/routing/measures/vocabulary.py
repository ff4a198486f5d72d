"""Which tokens belong to which expert? Null: choices turned round in every document."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from moe_core.errors import TraceError
from moe_core.routing.measures.against_chance import against_null, finding_of, layers_verdict, tested
from moe_core.routing.measures.measure import Bars, Plant, RandomRouting
from moe_core.routing.measures.term import Term
from moe_core.routing.measures.tokens import (
    TOGETHER,
    TokenKind,
    TokenTypes,
    layer_counts,
    texts_of,
    token_ids_of,
    token_types,
)
from moe_core.routing.statistics.bootstrap import RESAMPLES, units
from moe_core.routing.statistics.permutation import check_permutations, documents, sampled
from moe_core.routing.trace.counts import blocks, ratio
from moe_core.routing.trace.trace import AnyTrace, StoredTrace
from moe_core.routing.trace.types import Float64Array, Int64Array
from moe_core.words import percent


def vocabulary_specialization(trace: AnyTrace, which: TokenKind = "input", min_count: int = 10) -> pd.DataFrame:
    """How faithful each token type is to one expert (OLMoE, 2409.02060, eq. 8), one row per type and layer.

    `which`: the type is that of the token routed ("input"), of the model's likeliest next token ("predicted"), or of
    the token that does follow in the document ("next"; the last token of a document has none and is left out).
    Columns: layer, token_id, text; tokens = N_x, how often the type occurs, at least `min_count`;
    expert = the one chosen most (the lowest number on a tie; -1 if no token of the type has one);
    share = N_xi / N_x, 0..1, the part of its tokens that chose this expert;
    lift = share / (N_i / T), the expert's share of all tokens, rare types too; chance about 1, more for small counts.
    The score of a layer is the mean share over types. A type that occurs once has share 1 by construction, and the
    largest of E shares is above K/E by chance alone: hold the score against baselines.vocabulary.
    Raises TraceError for "predicted" without predicted_ids, UsageError for a wrong argument.
    """
    types = token_types(trace, which, min_count)
    V, texts, frames = len(types.ids), texts_of(trace, types.ids), []
    layers = layer_counts(trace, lambda part: types.label(token_ids_of(part, which)), V + 1)
    for layer, counts_VE in zip(trace.layers, layers, strict=True):
        share_E = ratio(counts_VE.sum(axis=0), types.total)
        best_V = counts_VE[:V].argmax(axis=1)
        share_V = ratio(counts_VE[np.arange(V), best_V], types.tokens)
        frames.append(
            pd.DataFrame(
                {
                    "layer": layer,
                    "token_id": types.ids,
                    "text": texts,
                    "tokens": types.tokens,
                    "expert": np.where(share_V > 0, best_V, -1),
                    "share": share_V,
                    "lift": ratio(share_V, np.where(share_V > 0, share_E[best_V], 0.0)),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def token_experts(trace: AnyTrace, layer: int, expert: int, min_count: int = 5) -> pd.DataFrame:
    """What an expert lives on: the token types that go to it, most unusual first.

    Columns: token_id, text; tokens = N_x, how often the type occurs, at least `min_count`;
    share = N_xi / N_x, 0..1, the part of its tokens that chose the expert; lift = share / (N_i / T), chance 1.
    Sorted by lift, then by tokens. Types that never chose the expert are left out.
    Raises TraceError for a layer or expert that is not there.
    """
    row = layer_row(trace, layer)
    check_expert(trace, expert)
    types = token_types(trace, "input", min_count)
    V, counts_V = len(types.ids), _type_counts(trace, types, row, expert)
    share_V = ratio(counts_V[:V], types.tokens)
    frame = pd.DataFrame(
        {
            "token_id": types.ids,
            "text": texts_of(trace, types.ids),
            "tokens": types.tokens,
            "share": share_V,
            "lift": ratio(share_V, float(ratio(counts_V.sum(), types.total))),
        }
    )
    return frame[share_V > 0].sort_values(["lift", "tokens"], ascending=False, kind="stable", ignore_index=True)


def _type_counts(trace: AnyTrace, types: TokenTypes, row: int, expert: int) -> Int64Array:
    """[V+1] tokens of each type, and of the rare ones together, that chose the expert of layer `row` of the L axis."""
    size = len(types.ids) + 1
    if isinstance(trace, StoredTrace) and trace.num_layers * size * trace.num_experts <= TOGETHER:
        # The next expert is looked at soon: all are counted in the time that one takes.
        counts_LVE: Int64Array = trace.once(
            ("type_counts", size),
            lambda: np.stack(list(layer_counts(trace, lambda part: types.label(part.token_ids), size))),
        )
        return counts_LVE[row, :, expert]
    counts_V = np.zeros(size, dtype=np.int64)
    for part in trace.parts():
        chose_T = (part.router_indices[row] == expert).any(axis=1)
        counts_V += np.bincount(types.label(part.token_ids[chose_T]), minlength=size)
    return counts_V


def layer_row(trace: AnyTrace, layer: int) -> int:
    """Place of layer number `layer` on the L axis. Raises TraceError for a layer without a router."""
    if layer not in trace.layers:
        raise TraceError(f"layer {layer} is not in this trace; expected one of {', '.join(map(str, trace.layers))}")
    return trace.layers.index(layer)


def check_expert(trace: AnyTrace, expert: int) -> None:
    """Raises TraceError for an expert that the trace's layers do not have."""
    if not 0 <= expert < trace.num_experts:
        raise TraceError(f"expert {expert} is not in this trace; expected 0 to {trace.num_experts - 1}")


VOCABULARY_FINDING = finding_of("specialises by token", "more")
# One in twenty occurrences beyond chance. This is a size, not a sign of learning: on the demo run's probe the untrained
# router has 0.35-0.50, since it sees little but the token, and the trained one 0.32-0.46.
CLEAR_EFFECT = 0.05

_NUMBERS = 2**22  # counts in memory at once

NO_TYPES = "cannot be tested: no token occurs often enough"


def vocabulary_test(
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
    counted = _TypedTokens(labels_T, len(types.ids), trace.num_experts)
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
        finding=VOCABULARY_FINDING,
        clear_effect=CLEAR_EFFECT,
        untestable=["" if counted.V else NO_TYPES] * trace.num_layers,
        tokens=trace.num_tokens,
        which=which,
        token_types=counted.V,
    )


class _TypedTokens:
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


def vocabulary_verdict(test: pd.DataFrame) -> str:
    """Do experts specialise in tokens? From baselines.vocabulary, all layers or the rows of one."""
    which = str(test["which"].iloc[0]) if len(test) else "input"
    of_what = {"input": "token", "predicted": "predicted token", "next": "next token"}[which]

    def size(row: pd.Series[Any]) -> str:
        return (
            f"the favourite expert of a {of_what} takes {percent(row['score'])} of its occurrences against "
            f"{percent(row['null_mean'])} by chance"
        )

    return layers_verdict(
        test,
        VOCABULARY_FINDING,
        size,
        clear=f"Expert choice specialises by {of_what}",
        slight=f"Expert choice specialises by {of_what} only slightly more than chance",
    )


TERMS = (
    Term(
        "vocabulary specialization",
        "How much of a token type goes to its favourite expert; a layer's score is the mean over types.",
        "max_e N_xe / N_x, types with a minimum count",
        "its null: well above K/E, more so for rare types",
        "2409.02060, eq. 8",
    ),
)


BARS = Bars(
    figure="vocabulary",
    title="Specialisation by token",
    question="Does a token go to the same expert every time?",
    axis="mean share of a token type's favourite expert (0..1)",
    sentence=lambda row: (
        f"Layer {row.layer}: the favourite expert of a token type takes {percent(row.score)} of its occurrences, "
        f"{against_null(row)}: {row.verdict}."
    ),
)


def _plant_types(routing: RandomRouting) -> None:
    """Token type x prefers expert x modulo E."""
    T, E = routing.logits.shape[1:]
    routing.logits[:, np.arange(T), routing.token_ids % E] += routing.strength


PLANT = Plant(_plant_types)
