"""Which experts are chosen together? Null: what each source has too much of or too little, with a random sign."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from moe_core.routing.measures.against_chance import against_null, finding_of, layers_verdict, tested
from moe_core.routing.measures.measure import Bars, Plant, RandomRouting
from moe_core.routing.measures.term import Term
from moe_core.routing.measures.used import extent_of_test, used
from moe_core.routing.statistics.bootstrap import Units, units
from moe_core.routing.statistics.information import Estimate
from moe_core.routing.statistics.intervals import t_quantile
from moe_core.routing.statistics.multiple_comparisons import MIN_EXPECTED, SIGNIFICANCE, Pool, adjust
from moe_core.routing.statistics.permutation import PairChain, check_permutations, documents, whole_and_sample
from moe_core.routing.statistics.sign_flips import (
    MIN_SOURCES,
    flipped_sums,
    informative,
    sign_patterns,
    smallest_p,
)
from moe_core.routing.trace.blocks import whole_sources
from moe_core.routing.trace.counts import pair_counts
from moe_core.routing.trace.shares import ratio
from moe_core.routing.trace.trace import AnyRouting, AnyTrace, RoutingTrace
from moe_core.routing.trace.types import BoolArray, Float64Array, Int16Array, Int64Array
from moe_core.words import number, percent


def coactivation(trace: AnyRouting) -> pd.DataFrame:
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


def pairs_as_counted(trace: AnyRouting) -> pd.DataFrame:
    """The pairs held against even routing, where they are counted without sources: nothing of it is certain.

    One row per pair i < j. Columns: layer, expert_i, expert_j; tokens = N_ij;
    lift_over_chance = N_ij (E-1) sum N / (N_i N_j E (K-1)): over what K different ones of E equally busy experts would
    have by chance, 1 = as often; K - 1 as the pairs themselves have it; NaN where one of the two was not chosen;
    uncertain = True.
    """
    E = trace.num_experts
    pairs_LEE = pair_counts(trace)
    counts_LE = np.diagonal(pairs_LEE, axis1=1, axis2=2).astype(np.float64)
    total_L = counts_LE.sum(axis=1)
    others_L = ratio(pairs_LEE.sum(axis=(1, 2)) - total_L, total_L)  # K - 1
    rows, columns = np.triu_indices(E, 1)
    tokens_LP = pairs_LEE[:, rows, columns]
    expected_LP = counts_LE[:, rows] * counts_LE[:, columns] * (E * ratio(others_L, total_L) / max(E - 1, 1))[:, None]
    return pd.DataFrame(
        {
            "layer": np.repeat(trace.layers, len(rows)),
            "expert_i": np.tile(rows, trace.num_layers),
            "expert_j": np.tile(columns, trace.num_layers),
            "tokens": tokens_LP.reshape(-1),
            "lift_over_chance": ratio(tokens_LP, expected_LP).reshape(-1),
            "uncertain": True,
        }
    )


COACTIVATION_FINDING = finding_of("chooses some experts together", "more often")
# Part of the pairs beyond chance from which experts work in teams. Measured on the demo run's probe: the untrained
# router, whose weights are alike by accident only, has 0.05-0.11, the trained one 0.12-0.15.
CLEAR_EFFECT = 0.1

TOLERANCE = 0.005
"""Strength beyond chance that is nothing to find. The best K of independent logits are no random set of the same loads,
and of hundreds of sources so small a difference is found for certain."""

PAIR_TOLERANCE = 0.02
"""Part of the expected tokens of one pair that is nothing to find, for the same reason."""

ONE_EXPERT = "cannot be tested: no token has two experts"
FEW_SOURCES = "cannot be told: fewer than six sources differ from chance at all, trace more documents"

_NUMBERS = 2**23  # counts in memory at once
_LEAST_DRAWS, _PART_OF_DRAWS = 20, 5  # of the chain: only their mean is needed


def coactivation_test(trace: AnyTrace, permutations: int = 200, seed: int = 0) -> pd.DataFrame:
    """metrics.coactivation against chance, source by source: are some experts chosen together?

    Strength of a layer: TV = 1/2 sum over pairs i < j of |sum_u r_uij| / N, N all pairs, r_uij = tokens of source u
    that chose both, less their mean if all choices with every document's loads and as many experts a token are equally
    likely (permutation.PairChain): the part of the pairs that would have to be others to look like chance, 0..1.
    Null: the same of sum_u s_u r_uij with random signs s_u (statistics.sign_flips), so that runs of choices, whatever
    they are, are in the null too. Tested is more than TOLERANCE besides chance, which adds up as independent noise
    does: p_value = (1 + #{sqrt(null^2 + TOLERANCE^2) >= strength}) / (1 + draws); `permutations` draws, or all
    2^(U-1) - 1 patterns of U sources where these are fewer.
    Columns, one row per layer: layer, strength; null_mean, null_p99, p_value, p_adjusted, effect, low, high, tokens,
    verdict as in baselines.persistence; FEW_SOURCES where fewer than six sources tell anything, whose signs reach no 5
    %. Of more than MAX_UNITS sources, random groups are taken for sources.
    """
    check_permutations(permutations)
    whole, trace = whole_and_sample(trace, seed)
    drawn = units(whole_sources(trace), seed)
    signs_PU = sign_patterns(drawn.count, permutations, np.random.default_rng([seed, 3]))
    strength, beyond, untestable = [], [], list[str]()
    for found in _residuals(trace, drawn, permutations, seed):
        strength.append(found.strength(signs_PU))
        beyond.append(found.beyond_chance())
        untestable += found.why_untestable()
    strength_PL = np.concatenate(strength, axis=1)
    return tested(
        {"layer": trace.layers, "strength": strength_PL[0]},
        strength_PL[1:],
        Estimate(*(np.concatenate(columns) for columns in zip(*beyond, strict=True))),
        finding=COACTIVATION_FINDING,
        clear_effect=CLEAR_EFFECT,
        untestable=untestable,
        tolerance=TOLERANCE,
        sampled=None,
        used=used(whole, trace, value_of_sample=True),
    )


def coactivation_pairs(trace: AnyTrace, permutations: int = 200, seed: int = 0) -> pd.DataFrame:
    """Each pair of experts against the null of baselines.coactivation: together more, or less, often than by chance?

    Columns, one row per pair i < j: layer, expert_i, expert_j; tokens (that chose both); expected (mean of the null);
    lift_over_chance = tokens / expected, 1 = chance, NaN where nothing is expected;
    p_value, two-sided, of more than PAIR_TOLERANCE of the expected besides chance, from random signs of the
    sources, and not below the 2^-(U-1) that U sources reach; NaN, that is "cannot be told", where fewer than 5
    tokens are expected (see Pool) or fewer than six sources differ from chance at all;
    p_adjusted over all pairs of all layers (Benjamini-Hochberg); uncertain = p_adjusted is not SIGNIFICANCE or less;
    what used.extent_of_test says: of a large trace all columns are of a sample of whole documents.
    """
    check_permutations(permutations)
    (whole, trace), pool = whole_and_sample(trace, seed), Pool()
    drawn = units(whole_sources(trace), seed)
    signs_PU = sign_patterns(drawn.count, permutations, np.random.default_rng([seed, 3]))
    one, other = np.triu_indices(trace.num_experts, 1)
    tokens, expected, least = [], [], []
    for found in _residuals(trace, drawn, permutations, seed):
        for observed_UC, expected_UC in zip(found.observed, found.expected, strict=True):
            tokens.append(observed_UC.sum(axis=0))
            expected.append(expected_UC.sum(axis=0))
            least.append(_add_pairs(pool, observed_UC - expected_UC, expected[-1], signs_PU))
    p_values = np.maximum(pool.p_values(), np.concatenate(least))
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
            **extent_of_test(whole, trace),
        }
    )


def _add_pairs(pool: Pool, residual_UC: Float64Array, expected_C: Float64Array, signs_PU: Float64Array) -> Float64Array:
    """Put the pairs of one layer into the pool; [C] the least p-value that the sources of each can reach."""
    squares_C = (residual_UC**2).sum(axis=0)
    sources_C = (np.abs(residual_UC) > 1e-9).sum(axis=0)
    tested_C = (expected_C >= MIN_EXPECTED) & (sources_C >= MIN_SOURCES)
    away_PC = ratio(np.abs(flipped_sums(residual_UC, signs_PU)), np.sqrt(squares_C))
    beyond_C = np.sqrt(np.maximum(residual_UC.sum(axis=0) ** 2 - (PAIR_TOLERANCE * expected_C) ** 2, 0.0))
    away_PC[0] = ratio(beyond_C, np.sqrt(np.maximum(squares_C, _usual_variance(residual_UC, expected_C, tested_C))))
    pool.add_distances(away_PC, tested_C)
    return smallest_p(sources_C)


def _usual_variance(residual_UC: Float64Array, expected_C: Float64Array, tested_C: BoolArray) -> Float64Array:
    """[C] the variance to expect of a pair's sum over sources, from what pairs of this layer show on the whole.

    A rare pair that comes in runs is in no source at all by accident. Its residuals, all small and negative, then show
    no variance, and the test would be sure.
    """
    if not tested_C.any():
        return expected_C
    spread_C = len(residual_UC) * residual_UC[:, tested_C].var(axis=0, ddof=1)
    usual_C: Float64Array = expected_C * np.median(spread_C / expected_C[tested_C])
    return usual_C


class _PairResiduals(NamedTuple):
    """Tokens of every pair of experts, by unit. Axes: L layers, U units, C pairs i < j."""

    observed: Int64Array
    """[L,U,C]"""
    expected: Float64Array
    """[L,U,C] on average over random choices with the loads of every document."""

    @classmethod
    def of(cls, chain: PairChain, E: int, draws: int, unit_T: Int64Array, U: int) -> _PairResiduals:
        L = chain.slots.shape[1] // len(unit_T)
        unit_X = np.repeat(np.arange(L), len(unit_T)) * U + np.tile(unit_T, L)
        observed_LUC = _pair_counts(chain.slots, E, unit_X, L * U).reshape(L, U, -1)
        total_LUC = np.zeros(observed_LUC.shape)
        for slots_KX in chain.draws(draws):
            total_LUC += _pair_counts(slots_KX, E, unit_X, L * U).reshape(L, U, -1)
        return cls(observed_LUC, total_LUC / draws)

    def strength(self, signs_PU: Float64Array) -> Float64Array:
        """[1+P,L] as observed and with each pattern of signs; NaN without a pair."""
        columns = [
            ratio(np.abs(flipped_sums(residual_UC, signs_PU)).sum(axis=1) / 2, observed_UC.sum())
            for residual_UC, observed_UC in zip(self.observed - self.expected, self.observed, strict=True)
        ]
        return np.stack(columns, axis=1)

    def beyond_chance(self) -> Estimate:
        """[L] strength without the part that chance adds, with a 95 % interval; NaN without a pair or a second source.

        |x| of a sum that varies is too large on average. Here each source's residuals are counted with the signs that
        the sums of all other sources have, so that chance alone gives 0 (cross-fitting). Where text is little these
        signs are often wrong and the estimate too small; the truth lies between it and the strength as counted. So the
        interval begins below the one and ends above the other, by the error of a ratio of sums over sources and
        Student's t.
        """
        value_L, counted_L, error_L = np.full((3, len(self.observed)), np.nan)
        for layer, (observed_UC, expected_UC) in enumerate(zip(self.observed, self.expected, strict=True)):
            residual_UC = observed_UC - expected_UC
            others_UC = residual_UC.sum(axis=0) - residual_UC
            agreeing_U = (np.sign(others_UC) * residual_UC).sum(axis=1) / 2
            pairs_U = observed_UC.sum(axis=1)
            U, pairs = len(pairs_U), pairs_U.sum()
            if not pairs or U < 2:
                continue
            value_L[layer] = agreeing_U.sum() / pairs
            counted_L[layer] = np.abs(residual_UC.sum(axis=0)).sum() / 2 / pairs
            away_U = agreeing_U - value_L[layer] * pairs_U
            error_L[layer] = np.sqrt(U / (U - 1) * (away_U**2).sum()) / pairs
        half_L = t_quantile(max(self.observed.shape[1] - 1, 1)) * error_L
        low_L, high_L = np.clip(value_L - half_L, 0.0, 1.0), np.clip(counted_L + half_L, 0.0, 1.0)
        return Estimate(np.clip(value_L, 0.0, 1.0), low_L, high_L)

    def why_untestable(self) -> list[str]:
        """Of each layer, or "" if it can be tested."""
        return [
            ONE_EXPERT
            if not observed_UC.any()
            else FEW_SOURCES
            if informative(observed_UC - expected_UC).sum() < MIN_SOURCES
            else ""
            for observed_UC, expected_UC in zip(self.observed, self.expected, strict=True)
        ]


def _residuals(trace: RoutingTrace, drawn: Units, permutations: int, seed: int) -> Iterator[_PairResiduals]:
    """What the sources of some layers have beyond chance; as many layers together as fit into memory."""
    texts = documents(trace)
    unit_T = drawn.of_block[whole_sources(trace).of_token[texts.order]]
    draws = max(_LEAST_DRAWS, permutations // _PART_OF_DRAWS)
    together = max(1, _NUMBERS // (drawn.count * (trace.num_experts + 1) ** 2))
    for start in range(0, trace.num_layers, together):
        chain = PairChain(
            trace.router_indices[start : start + together], texts, np.random.default_rng([seed, 2, start])
        )
        yield _PairResiduals.of(chain, trace.num_experts, draws, unit_T, drawn.count)


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
            f"{percent(row['null_mean'])} by chance"
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
        "1/2 · sum over i < j of |N_ij - M_ij| / N, M_ij the mean of random choices with every document's loads",
        "its null, which is above 0",
        "total variation distance",
    ),
    Term(
        "null of co-activation",
        "What each source has beyond random sets of experts with its loads, with a random sign; six sources or more.",
        "|sum over sources of ± (N_ij - M_ij)|, all signs equally likely",
        "",
        "Canay, Romano and Shaikh 2017; Cameron, Gelbach and Miller 2008",
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


PLANT, PAIRS_PLANT = Plant(_plant_teams, tolerant=True), Plant(_plant_teams, _planted_pair_found, tolerant=True)
