"""Which experts are chosen together? Null: random choices with the loads of every document kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from moe_core.routing.measures.against_chance import against_null, finding_of, layers_verdict, tested
from moe_core.routing.measures.measure import Bars, Plant, RandomRouting
from moe_core.routing.measures.term import Term
from moe_core.routing.statistics.bootstrap import MAX_UNITS, RESAMPLES, units
from moe_core.routing.statistics.multiple_comparisons import MIN_EXPECTED, SIGNIFICANCE, Pool, adjust
from moe_core.routing.statistics.permutation import PairChain, check_permutations, documents, sampled
from moe_core.routing.trace.counts import blocks, pair_counts, ratio
from moe_core.routing.trace.trace import AnyTrace, RoutingTrace
from moe_core.routing.trace.types import Float64Array, Int16Array, Int64Array
from moe_core.words import number, percent


def coactivation(trace: AnyTrace) -> pd.DataFrame:
    """How often two experts of a layer serve the same token, over all pairs of slots (not only adjacent ranks).

    One row per ordered pair i != j. Columns: layer, expert_i, expert_j;
    tokens = N_ij, tokens that chose both (symmetric);
    probability = N_ij / N_i, 0..1, the part of i's tokens that chose j too (OLMoE, 2409.02060, eq. 6; sums to K - 1
    over j where no slot is unused; even routing (K-1)/(E-1)); NaN for an expert that nobody chose;
    lift = N_ij T / (N_i N_j), >= 0: against experts chosen independently of each other, T tokens in all. A token's K
    experts differ, so even routing has lift (K-1) E / ((E-1) K) < 1, and none at all at K = 1: hold it against
    baselines.coactivation.
    """
    E = trace.num_experts
    pairs_LEE = pair_counts(trace)
    counts_LE = np.diagonal(pairs_LEE, axis1=1, axis2=2)
    rows, columns = np.nonzero(~np.eye(E, dtype=bool))
    tokens_LP = pairs_LEE[:, rows, columns]
    own_LP, other_LP = counts_LE[:, rows], counts_LE[:, columns]
    return pd.DataFrame(
        {
            "layer": np.repeat(trace.layers, len(rows)),
            "expert_i": np.tile(rows, trace.num_layers),
            "expert_j": np.tile(columns, trace.num_layers),
            "tokens": tokens_LP.reshape(-1),
            "probability": ratio(tokens_LP, own_LP).reshape(-1),
            "lift": ratio(tokens_LP * float(trace.num_tokens), own_LP * other_LP.astype(np.float64)).reshape(-1),
        }
    )


COACTIVATION_FINDING = finding_of("chooses some experts together", "more often")
# Part of the pairs beyond chance from which experts work in teams. Measured on the demo run's probe: the untrained
# router, whose weights are alike by accident only, has 0.05-0.11, the trained one 0.14-0.17.
CLEAR_EFFECT = 0.1

ONE_EXPERT = "cannot be tested: no token has two experts"

_NUMBERS = 2**23  # counts in memory at once
_UNIT_DRAWS = 20  # draws that are counted source by source: only their mean is needed, for the interval


def coactivation_test(trace: AnyTrace, permutations: int = 200, seed: int = 0) -> pd.DataFrame:
    """metrics.coactivation against random choices with the same loads: are some experts chosen together?

    Strength of a layer: TV = 1/2 sum over pairs i < j of |N_ij - M_ij| / N, N_ij tokens that chose both, N all pairs,
    M_ij the mean of N_ij over the null (with the observed one among its draws, so that all are treated alike): the
    part of the pairs that would have to be others to look like chance, 0..1. Null: all choices with every document's
    loads and as many experts a token are equally likely (permutation.PairChain).
    Columns, one row per layer: layer, strength; null_mean, null_p99, p_value, p_adjusted, effect, low, high, tokens,
    verdict as in baselines.persistence.
    """
    check_permutations(permutations)
    trace = sampled(trace, seed)
    texts, parts = documents(trace), blocks(trace)
    drawn = units(parts, seed)
    unit_T = drawn.of_block[parts.of_token[texts.order]]
    weights_RU = drawn.weights(RESAMPLES, np.random.default_rng([seed, 1]))
    strength, resampled = [], []
    for rows in _layers_together(trace, permutations):
        chain = PairChain(trace.router_indices[rows], texts, np.random.default_rng([seed, 2, rows.start]))
        draws = _PairDraws.of(chain, trace.num_experts, permutations, unit_T, drawn.count)
        strength.append(draws.strength())
        resampled.append(draws.resampled(weights_RU))
    strength_PL = np.concatenate(strength, axis=1)
    return tested(
        {"layer": trace.layers, "strength": strength_PL[0]},
        strength_PL[1:],
        drawn.interval(strength_PL[0], np.concatenate(resampled, axis=1)),
        finding=COACTIVATION_FINDING,
        clear_effect=CLEAR_EFFECT,
        untestable=[ONE_EXPERT if np.isnan(value) else "" for value in strength_PL[0]],
        tokens=trace.num_tokens,
    )


def coactivation_pairs(trace: AnyTrace, permutations: int = 200, seed: int = 0) -> pd.DataFrame:
    """Each pair of experts against the null of baselines.coactivation: together more, or less, often than by chance?

    Columns, one row per pair i < j: layer, expert_i, expert_j; tokens (that chose both); expected (mean of the null);
    lift_over_chance = tokens / expected, 1 = chance, NaN where nothing is expected; p_value, two-sided, NaN where
    fewer than 5 tokens are expected (see Pool); p_adjusted over all pairs of all layers (Benjamini-Hochberg);
    uncertain = p_adjusted is not SIGNIFICANCE or less.
    """
    check_permutations(permutations)
    trace = sampled(trace, seed)
    texts, pool = documents(trace), Pool()
    one, other = np.triu_indices(trace.num_experts, 1)
    tokens, expected = [], []
    for rows in _layers_together(trace, permutations):
        chain = PairChain(trace.router_indices[rows], texts, np.random.default_rng([seed, 2, rows.start]))
        of_layer = _layer_of_token(chain, trace.num_tokens)
        counts_PLC = np.stack(
            [
                _pair_counts(chain.slots, trace.num_experts, *of_layer),
                *(_pair_counts(slots, trace.num_experts, *of_layer) for slots in chain.draws(permutations)),
            ]
        )
        pool.add(counts_PLC.reshape(1 + permutations, -1), counts_PLC.mean(axis=0).reshape(-1) >= MIN_EXPECTED)
        tokens.append(counts_PLC[0].reshape(-1))
        expected.append(counts_PLC[1:].mean(axis=0).reshape(-1))
    p_values = pool.p_values()
    adjusted = adjust(p_values)
    return pd.DataFrame(
        {
            "layer": np.repeat(trace.layers, len(one)),
            "expert_i": np.tile(one, trace.num_layers),
            "expert_j": np.tile(other, trace.num_layers),
            "tokens": np.concatenate(tokens),
            "expected": np.concatenate(expected),
            "lift_over_chance": ratio(np.concatenate(tokens), np.concatenate(expected)),
            "p_value": p_values,
            "p_adjusted": adjusted,
            "uncertain": ~(adjusted <= SIGNIFICANCE),
        }
    )


class _PairDraws(NamedTuple):
    """Tokens of every pair of experts. Axes: P draws, L layers, C pairs i < j, U units."""

    pairs: Int64Array
    """[1+P,L,C] observed, then drawn."""
    observed: Int64Array
    """[L,U,C] observed, by unit."""
    expected: Float64Array
    """[L,U,C] drawn on average, by unit."""

    @classmethod
    def of(cls, chain: PairChain, E: int, permutations: int, unit_T: Int64Array, U: int) -> _PairDraws:
        layer_X, L = _layer_of_token(chain, len(unit_T))
        unit_X = layer_X * U + np.tile(unit_T, L)

        def by_unit(slots_KX: Int16Array) -> Int64Array:
            return _pair_counts(slots_KX, E, unit_X, L * U).reshape(L, U, -1)

        observed_LUC = by_unit(chain.slots)
        pairs, expected_LUC, counted = [observed_LUC.sum(axis=1)], np.zeros(observed_LUC.shape), 0
        every = max(1, permutations // _UNIT_DRAWS)
        for place, slots_KX in enumerate(chain.draws(permutations)):
            if place % every:
                pairs.append(_pair_counts(slots_KX, E, layer_X, L))
                continue
            drawn_LUC = by_unit(slots_KX)
            pairs.append(drawn_LUC.sum(axis=1))
            expected_LUC += drawn_LUC
            counted += 1
        return cls(np.stack(pairs), observed_LUC, expected_LUC / counted)

    def strength(self) -> Float64Array:
        """[1+P,L] of the observed and of each drawn choice; NaN without a pair."""
        away_PL = np.abs(self.pairs - self.pairs.mean(axis=0)).sum(axis=-1) / 2
        return ratio(away_PL, self.pairs[0].sum(axis=-1))

    def resampled(self, weights_RU: Float64Array) -> Float64Array:
        """[R,L] strength of sources drawn again."""
        columns = [
            ratio(np.abs(weights_RU @ excess_UC).sum(axis=1) / 2, weights_RU @ observed_UC.sum(axis=1))
            for excess_UC, observed_UC in zip(self.observed - self.expected, self.observed, strict=True)
        ]
        return np.stack(columns, axis=1)


def _layers_together(trace: RoutingTrace, permutations: int) -> Iterator[slice]:
    """Layers that are drawn together: all, unless so many counts would not fit into _NUMBERS."""
    pairs = trace.num_experts * (trace.num_experts - 1) // 2
    together = max(1, _NUMBERS // max(permutations * pairs, MAX_UNITS * trace.num_experts**2, 1))
    for start in range(0, trace.num_layers, together):
        yield slice(start, min(start + together, trace.num_layers))


def _layer_of_token(chain: PairChain, tokens: int) -> tuple[Int64Array, int]:
    """(layer [L T] of each token of the chain, L)."""
    L = chain.slots.shape[1] // tokens
    return np.repeat(np.arange(L), tokens), L


def _pair_counts(slots_KX: Int16Array, E: int, group_X: Int64Array, G: int) -> Int64Array:
    """[G,C] tokens of each group that chose both experts of each pair i < j."""
    size = E + 1
    counts = np.zeros(G * size * size, dtype=np.int64)
    group_X = group_X * (size * size) + (size + 1)
    for slot, one_X in enumerate(slots_KX):
        first_X = group_X + one_X.astype(np.intp) * size
        for other_X in slots_KX[slot + 1 :]:
            counts += np.bincount(first_X + other_X, minlength=len(counts))
    counts_GEE = counts.reshape(G, size, size)[:, 1:, 1:]
    one, other = np.triu_indices(E, 1)
    return counts_GEE[:, one, other] + counts_GEE[:, other, one]


def coactivation_verdict(test: pd.DataFrame, pairs: pd.DataFrame | None = None) -> str:
    """Are some experts chosen together beyond chance? From baselines.coactivation, all layers or the rows of one.

    With `pairs` from baselines.coactivation_pairs the strongest certain pair of these layers is named.
    """

    def size(row: pd.Series[Any]) -> str:
        return (
            f"{percent(row['strength'])} of the pairs are others than chance would choose, against "
            f"{percent(row['null_mean'])} in random choices of the same load"
        )

    text = layers_verdict(
        test,
        COACTIVATION_FINDING,
        size,
        clear="Some experts are chosen together more than chance",
        slight="Experts are chosen together only slightly differently from chance",
    )
    if pairs is None or not test["verdict"].isin(COACTIVATION_FINDING.both).any():
        return text
    certain = pairs[~pairs["uncertain"].astype(bool) & pairs["layer"].isin(test["layer"])]
    together = certain[certain["lift_over_chance"] > 1]
    if together.empty:
        return text
    best = together.iloc[int((together["tokens"] - together["expected"]).argmax())]
    return (
        f"{text} Strongest: experts {int(best['expert_i'])} and {int(best['expert_j'])} of layer {int(best['layer'])}, "
        f"{number(best['lift_over_chance'])} times as often as chance."
    )


STRENGTH_TERMS = (
    Term(
        "co-activation",
        "The part of an expert's tokens that also chose a certain other expert.",
        "N_ij / N_i",
        "(K-1)/(E-1) when even; uneven load alone changes it",
        "2409.02060, eq. 6",
    ),
    Term(
        "co-activation strength",
        "The part of a layer's expert pairs that would have to be others to look like chance, 0 to 1.",
        "1/2 · sum over i < j of |N_ij - M_ij| / N, M_ij the mean of the null",
        "its null, which is above 0",
        "total variation distance",
    ),
    Term(
        "null of co-activation",
        "Random sets of experts, with every document's load and every token's number of experts as they are.",
        "swaps of experts between tokens of a document",
        "",
        "Besag and Clifford 1989",
    ),
)


PAIR_TERMS = (
    Term(
        "lift over chance",
        "How many times as often as in random choices of the same load two experts serve the same token.",
        "N_ij / M_ij",
        "1",
    ),
)


BARS = Bars(
    figure="coactivation",
    title="Teams of experts, by layer",
    question="Are some experts chosen together more than chance?",
    axis="part of the pairs that differ from chance (0..1)",
    sentence=lambda row: (
        f"Layer {row.layer}: {percent(row.strength)} of the pairs are others than chance would choose, "
        f"{against_null(row)}: {row.verdict}."
    ),
)


def _plant_teams(routing: RandomRouting) -> None:
    """A third of the tokens prefer experts 0 and 1, another third 2 and 3."""
    L, T, _ = routing.logits.shape
    team = routing.rng.integers(0, 3, (L, T, 1))
    routing.logits[:, :, :2] += routing.strength * (team == 0)
    routing.logits[:, :, 2:4] += routing.strength * (team == 1)


def _planted_pair_found(pairs: pd.DataFrame) -> bool:
    planted = pairs[(pairs["expert_i"] == 0) & (pairs["expert_j"] == 1)]
    return bool((~planted["uncertain"] & (planted["lift_over_chance"] > 1)).all())


PLANT, PAIRS_PLANT = Plant(_plant_teams), Plant(_plant_teams, _planted_pair_found)
