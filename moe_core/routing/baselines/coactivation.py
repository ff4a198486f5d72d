"""Are some experts chosen together? Random choices with the loads of every document kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from moe_core.routing.baselines.findings import COACTIVATION
from moe_core.routing.baselines.pooling import MIN_EXPECTED, Pool
from moe_core.routing.baselines.resampling import RESAMPLES, units
from moe_core.routing.baselines.shuffles import PairChain, documents, sampled
from moe_core.routing.baselines.significance import SIGNIFICANCE, adjust, check_permutations, tested
from moe_core.routing.counts import blocks, ratio
from moe_core.routing.stored import AnyTrace
from moe_core.routing.types import Float64Array, Int16Array, Int64Array

CLEAR_EFFECT = 0.05

ONE_EXPERT = "cannot be tested: no token has two experts"

_UNIT_DRAWS = 20  # draws that are counted source by source: only their mean is needed, for the interval


def coactivation(trace: AnyTrace, permutations: int = 200, seed: int = 0) -> pd.DataFrame:
    """metrics.coactivation against random choices with the same loads: are some experts chosen together?

    Strength of a layer: TV = 1/2 sum over pairs i < j of |N_ij - M_ij| / N, N_ij tokens that chose both, N all pairs,
    M_ij the mean of N_ij over the null (with the observed one among its draws, so that all are treated alike): the
    part of the pairs that would have to be others to look like chance, 0..1. Null: all choices with every document's
    loads and as many experts a token are equally likely (shuffles.PairChain).
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
    for row, indices_TK in enumerate(trace.router_indices):
        chain = PairChain(indices_TK, texts, np.random.default_rng([seed, 2, row]))
        draws = _Draws.of(chain, trace.num_experts, permutations, unit_T, drawn.count)
        strength.append(draws.strength())
        resampled.append(draws.resampled(weights_RU))
    strength_PL = np.stack(strength, axis=1)
    return tested(
        {"layer": trace.layers, "strength": strength_PL[0]},
        strength_PL[1:],
        drawn.interval(strength_PL[0], np.stack(resampled, axis=1)),
        finding=COACTIVATION,
        clear_effect=CLEAR_EFFECT,
        untestable=[ONE_EXPERT if np.isnan(value) else "" for value in strength_PL[0]],
        tokens=trace.num_tokens,
    )


def coactivation_pairs(trace: AnyTrace, permutations: int = 200, seed: int = 0) -> pd.DataFrame:
    """Each pair of experts against the null of baselines.coactivation: together more, or less, often than by chance?

    Columns, one row per pair i < j: layer, expert_i, expert_j; tokens (that chose both); expected (mean of the null);
    lift_over_chance = tokens / expected, 1 = chance, NaN where nothing is expected; p_value, two-sided, NaN where
    fewer than 5 tokens are expected (see pooling.Pool); p_adjusted over all pairs of all layers (Benjamini-Hochberg);
    uncertain = p_adjusted is not SIGNIFICANCE or less.
    """
    check_permutations(permutations)
    trace = sampled(trace, seed)
    texts, pool = documents(trace), Pool()
    one, other = np.triu_indices(trace.num_experts, 1)
    frames = []
    for row, (layer, indices_TK) in enumerate(zip(trace.layers, trace.router_indices, strict=True)):
        chain = PairChain(indices_TK, texts, np.random.default_rng([seed, 2, row]))
        pairs_PC = np.stack(list(_all_pairs(chain, trace.num_experts, permutations)))
        pool.add(pairs_PC, pairs_PC.mean(axis=0) >= MIN_EXPECTED)
        expected = pairs_PC[1:].mean(axis=0)
        columns = {"layer": layer, "expert_i": one, "expert_j": other, "tokens": pairs_PC[0], "expected": expected}
        frames.append(pd.DataFrame({**columns, "lift_over_chance": ratio(pairs_PC[0], expected)}))
    p_values = pool.p_values()
    adjusted = adjust(p_values)
    frame = pd.concat(frames, ignore_index=True)
    return frame.assign(p_value=p_values, p_adjusted=adjusted, uncertain=~(adjusted <= SIGNIFICANCE))


class _Draws(NamedTuple):
    """Tokens of every pair of experts in one layer. Axes: P draws, C pairs i < j, U units."""

    pairs: Int64Array
    """[1+P,C] observed, then drawn."""
    observed: Int64Array
    """[U,C] observed, by unit."""
    expected: Float64Array
    """[U,C] drawn on average, by unit."""

    @classmethod
    def of(cls, chain: PairChain, E: int, permutations: int, unit_T: Int64Array, U: int) -> _Draws:
        observed_UC = _pair_counts(chain.slots, E, unit_T, U)
        pairs, expected_UC, counted = [observed_UC.sum(axis=0)], np.zeros(observed_UC.shape), 0
        every = max(1, permutations // _UNIT_DRAWS)
        for number, slots_KT in enumerate(chain.draws(permutations)):
            if number % every:
                pairs.append(_pair_counts(slots_KT, E))
                continue
            drawn_UC = _pair_counts(slots_KT, E, unit_T, U)
            pairs.append(drawn_UC.sum(axis=0))
            expected_UC += drawn_UC
            counted += 1
        return cls(np.stack(pairs), observed_UC, expected_UC / counted)

    def strength(self) -> Float64Array:
        """[1+P] of the observed and of each drawn choice; NaN without a pair."""
        away_P = np.abs(self.pairs - self.pairs.mean(axis=0)).sum(axis=1) / 2
        return ratio(away_P, float(self.pairs[0].sum()))

    def resampled(self, weights_RU: Float64Array) -> Float64Array:
        """[R] strength of sources drawn again."""
        away_R = np.abs(weights_RU @ (self.observed - self.expected)).sum(axis=1) / 2
        return ratio(away_R, weights_RU @ self.observed.sum(axis=1))


def _pair_counts(slots_KT: Int16Array, E: int, unit_T: Int64Array | None = None, U: int = 1) -> Int64Array:
    """Tokens that chose both experts of each pair i < j: [U,C] by unit, or [C] in all."""
    size = E + 1
    counts = np.zeros(U * size * size, dtype=np.int64)
    for slot, one_T in enumerate(slots_KT):
        first_T = one_T.astype(np.intp) * size + (size + 1)
        if unit_T is not None:
            first_T += unit_T * (size * size)
        for other_T in slots_KT[slot + 1 :]:
            counts += np.bincount(first_T + other_T, minlength=len(counts))
    counts_UEE = counts.reshape(U, size, size)[:, 1:, 1:]
    one, other = np.triu_indices(E, 1)
    counts_UC = counts_UEE[:, one, other] + counts_UEE[:, other, one]
    return counts_UC[0] if unit_T is None else counts_UC


def _all_pairs(chain: PairChain, E: int, permutations: int) -> Iterator[Int64Array]:
    """[C] observed, then drawn."""
    yield _pair_counts(chain.slots, E)
    for slots_KT in chain.draws(permutations):
        yield _pair_counts(slots_KT, E)
