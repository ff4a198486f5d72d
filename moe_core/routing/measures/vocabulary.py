"""Which tokens belong to which expert? Null: choices turned round in every document."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from moe_core.errors import TraceError
from moe_core.routing.measures.against_chance import (
    Sampled,
    against_null,
    finding_of,
    interval_words,
    layers_verdict,
    tested,
)
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
from moe_core.routing.measures.used import used
from moe_core.routing.statistics.information import Estimate
from moe_core.routing.statistics.jackknife import Groups, groups_for
from moe_core.routing.statistics.permutation import (
    affordable_rotations,
    check_permutations,
    documents,
    rotated_parts,
    whole_and_sample,
)
from moe_core.routing.trace.kernels import add_grouped_counts
from moe_core.routing.trace.shares import ratio
from moe_core.routing.trace.trace import AnyTrace, RoutingTrace, StoredTrace
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

_NUMBERS = 2**22  # numbers worked on at once
_ROUNDING = 1e-9  # of sums of weighted counts
FOLDS = 10
"""Parts of the sources in which a favourite expert is scored that the others chose."""

NO_TYPES = "cannot be tested: no token occurs often enough"


def vocabulary_test(
    trace: AnyTrace, which: TokenKind = "input", min_count: int = 10, permutations: int = 200, seed: int = 0
) -> pd.DataFrame:
    """metrics.vocabulary_specialization against choices made without looking at the token.

    Score of a layer: how much of a token type its favourite expert takes, averaged over the types that occur at least
    `min_count` times in the trace (OLMoE, 2409.02060, eq. 8). Null: within every document the choices are turned round
    by a random distance, so that loads, sets of experts and runs stay as they are, only the tokens are others.
    Columns, one row per layer: layer, score (0..1, as counted); null_mean, null_p99, p_value, p_adjusted, effect;
    estimate = the score of a favourite that is chosen on nine tenths of the sources and scored on the last one, each in
    turn, which the largest of many shares does not inflate; low, high: its interval, up to where the score as counted
    may end, since a favourite chosen apart may be the wrong one; tokens, documents and what else
    `used` says; which; token_types; verdict. Of a large trace the p-value is of a sample of whole documents, the types
    and all else of all tokens.
    Raises TraceError and UsageError as the measure does.
    """
    check_permutations(permutations)
    types = token_types(trace, which, min_count)
    V, E = len(types.ids), trace.num_experts
    trace, sample = whole_and_sample(trace, seed)
    texts, rng = documents(sample), np.random.default_rng(seed)
    counted = _TypedTokens(types.label(token_ids_of(sample, which))[texts.order], V, E)
    slots_LKT = sample.router_indices.transpose(0, 2, 1)[:, :, texts.order].astype(np.int64) + 1
    of_sample_L = counted.scores(slots_LKT)
    null_PL = np.stack([counted.scores(slots_LKT[:, :, texts.rotation(rng)]) for _ in range(permutations)])
    value_L, estimate = _scores_of_all(trace, types, which, seed)
    return tested(
        {"layer": trace.layers, "score": value_L},
        null_PL,
        estimate,
        finding=VOCABULARY_FINDING,
        clear_effect=CLEAR_EFFECT,
        untestable=[NO_TYPES if np.isnan(score) else "" for score in of_sample_L],
        sampled=None if sample is trace else Sampled(of_sample_L, _null_of_all(trace, types, which, seed)),
        used=used(trace, sample),
        which=which,
        token_types=V,
    )


class _TypedTokens:
    """Tokens whose type occurs often enough. Axes: V types, X of their tokens (by type)."""

    def __init__(self, labels_T: Int64Array, V: int, E: int) -> None:
        self._V, self._E = V, E
        own = np.flatnonzero((labels_T >= 0) & (labels_T < V))
        self._place = own[np.argsort(labels_T[own], kind="stable")]
        self._label = labels_T[self._place]
        self._tokens = np.bincount(self._label, minlength=V)

    def scores(self, slots_LKT: Int64Array) -> Float64Array:
        """[L] mean over types of the largest share of an expert; slots hold 1..E, 0 = unused. NaN without types."""
        return np.array([_score(self._counts(slots_KT), self._tokens) for slots_KT in slots_LKT])

    def _counts(self, slots_KT: Int64Array) -> Int64Array:
        """[V,E]"""
        size = self._E + 1
        keys_KX = slots_KT[:, self._place] + self._label * size
        counts = np.bincount(keys_KX.reshape(-1), minlength=self._V * size)
        return counts.reshape(self._V, size)[:, 1:]


def _score(counts_VE: Int64Array, tokens_V: Int64Array) -> float:
    """Mean over the types that occur of the largest share of an expert."""
    return float(ratio(np.nansum(ratio(counts_VE.max(axis=1), tokens_V)), (tokens_V > 0).sum()))


class _ScoreSums:
    """Sums over token types of one layer's shares. Axes: 2 = (sum, number of types), G groups."""

    def __init__(self, G: int) -> None:
        self.counted, self.apart = np.zeros(2), np.zeros(2)
        """[2] the favourite's share, chosen and scored on all sources; chosen on some and scored on others."""
        self.counted_without, self.apart_without = np.zeros((2, G)), np.zeros((2, G))
        """[2,G] the same without each group."""

    def add(self, counts_GVE: Int64Array, tokens_GV: Int64Array, groups: Groups) -> None:
        G, V, E = counts_GVE.shape
        folds = min(FOLDS, G)
        fold_G = np.arange(G) % folds
        together = max(1, _NUMBERS // (max(G, folds * len(np.unique(groups.stratum))) * E))
        for start in range(0, V, together):
            # Tokens of a type stand as one more expert.
            part_GVX = np.concatenate([counts_GVE, tokens_GV[:, :, None]], axis=2)[:, start : start + together]
            shape = (folds, -1, E + 1)
            flat_GC = part_GVX.reshape(G, -1)
            for group, left_FC in enumerate(groups.parts_without_each(flat_GC, fold_G, folds)):
                counted, apart = _summed_shares(left_FC.reshape(shape))
                self.counted_without[:, group] += counted
                self.apart_without[:, group] += apart
            whole_FC = np.stack([flat_GC[fold::folds].sum(axis=0, dtype=np.float64) for fold in range(folds)])
            counted, apart = _summed_shares(whole_FC.reshape(shape))
            self.counted += counted
            self.apart += apart


def _summed_shares(counts_FVX: Float64Array) -> tuple[Float64Array, Float64Array]:
    """(sum over types, types) of the favourite's share, as counted and chosen apart; last "expert": the type's tokens.

    Apart: in each fold the favourite is chosen in the other folds; experts that these chose equally often share the
    score, and a type that no other fold has is left out.
    """
    total_VX = counts_FVX.sum(axis=0)
    counted_V = ratio(total_VX[:, :-1].max(axis=1), np.where(total_VX[:, -1] > _ROUNDING, total_VX[:, -1], 0.0))
    rest_FVX = total_VX - counts_FVX
    rest_FVE = rest_FVX[..., :-1]
    favourite_FVE = rest_FVE >= rest_FVE.max(axis=-1, keepdims=True) - _ROUNDING
    hits_FV = (counts_FVX[..., :-1] * favourite_FVE).sum(axis=-1) / favourite_FVE.sum(axis=-1)
    known_FV = rest_FVX[..., -1] > _ROUNDING
    tokens_V = (counts_FVX[..., -1] * known_FV).sum(axis=0)
    apart_V = ratio((hits_FV * known_FV).sum(axis=0), np.where(tokens_V > _ROUNDING, tokens_V, 0.0))
    return _sum_and_count(counted_V), _sum_and_count(apart_V)


def _sum_and_count(share_V: Float64Array) -> Float64Array:
    return np.array([np.nansum(share_V), (~np.isnan(share_V)).sum()])


def _scores_of_all(trace: AnyTrace, types: TokenTypes, which: TokenKind, seed: int) -> tuple[Float64Array, Estimate]:
    """([L] score as counted, its estimate) of all tokens, as many types and layers together as memory allows."""
    V, E = len(types.ids), trace.num_experts
    sources = groups_for(trace, V * E, seed, _NUMBERS // 2)
    G = sources.groups.count
    sums = [_ScoreSums(G) for _ in trace.layers]
    together = max(1, TOGETHER // (G * E))
    for first in range(0, V, together):
        v = min(together, V - first)

        def labels(part: RoutingTrace, first: int = first, v: int = v) -> Int64Array:
            label_T = types.label(token_ids_of(part, which)) - first
            return np.where((label_T >= 0) & (label_T < v), sources.label(part) * v + label_T, -1)

        tokens_GV = np.zeros(G * v, dtype=np.int64)
        for part in trace.parts():
            tokens_GV += np.bincount(labels(part) + 1, minlength=G * v + 1)[1:]
        for of_layer, counts in zip(sums, layer_counts(trace, labels, G * v), strict=True):
            of_layer.add(counts.reshape(G, v, E), tokens_GV.reshape(G, v), sources.groups)
    values = {
        name: ratio(*np.stack([getattr(one, name) for one in sums], axis=-1))
        for name in ("counted", "apart", "counted_without", "apart_without")
    }
    value_L, apart_L, groups = values["counted"], values["apart"], sources.groups
    low_L, high_L = groups.interval(apart_L, values["apart_without"])
    # A favourite chosen apart is now and then the wrong one, which scores too little; the counted one scores too much.
    # What the best expert truly takes lies between the two, so the interval goes up to where the larger may end.
    return value_L, Estimate(apart_L, low_L, np.maximum(high_L, groups.interval(value_L, values["counted_without"])[1]))


def _null_of_all(trace: AnyTrace, types: TokenTypes, which: TokenKind, seed: int) -> Float64Array:
    """[L] mean score over a few rotations of all tokens."""
    V, E, L = len(types.ids), trace.num_experts, trace.num_layers
    rotations = affordable_rotations(trace, L * trace.top_k, V * E, TOGETHER)
    together, means = max(1, TOGETHER // max(rotations * V * E, 1)), []
    for start in range(0, L, together):
        rows = range(start, min(start + together, L))
        counts_PRVE = np.zeros((rotations, len(rows), V, E), dtype=np.int64)
        for part, texts, places in rotated_parts(trace, rotations, seed):
            labels_T = types.label(token_ids_of(part, which))[texts.order]
            labels_T[labels_T == V] = -1
            for counts_RVE, place_T in zip(counts_PRVE, places, strict=True):
                moved_RTK = part.router_indices[rows.start : rows.stop, texts.order[place_T]]
                add_grouped_counts(counts_RVE, moved_RTK, labels_T)
        scores_PR = [[_score(counts_VE, types.tokens) for counts_VE in counts_RVE] for counts_RVE in counts_PRVE]
        means.append(np.mean(scores_PR, axis=0))
    return np.concatenate(means)


def vocabulary_verdict(test: pd.DataFrame) -> str:
    """Do experts specialise in tokens? From baselines.vocabulary, all layers or the rows of one."""
    which = str(test["which"].iloc[0]) if len(test) else "input"
    of_what = {"input": "token", "predicted": "predicted token", "next": "next token"}[which]

    def size(row: pd.Series[Any]) -> str:
        return (
            f"the favourite expert of a {of_what} takes {interval_words(row, percent)} of its occurrences; as "
            f"counted {percent(row['score'])} against {percent(row['null_mean'])} by chance"
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
    axis="mean share of a token type's favourite expert (0..1)",
    sentence=lambda row: (
        f"Layer {row.layer}: the favourite expert of a token type takes {interval_words(row, percent)} of its "
        f"occurrences; as counted {percent(row.score)}, {against_null(row)}: {row.verdict}."
    ),
)


def _plant_types(routing: RandomRouting) -> None:
    """Token type x prefers expert x modulo E."""
    T, E = routing.logits.shape[1:]
    routing.logits[:, np.arange(T), routing.token_ids % E] += routing.strength


PLANT = Plant(_plant_types)
