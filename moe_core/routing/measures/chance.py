"""What independent choices with a layer's load give: the level a measure of sameness is held against."""

from __future__ import annotations

import numpy as np
from scipy import special

from moe_core.routing.trace.types import Float64Array, Int64Array

_ROUNDS, _CLOSE = 500, 1e-10
_SERIES_MEAN = 20.0  # a hypergeometric mean from which the series is right to 2e-4 nats a cell of 60 or more


def chance_of_sharing(chose_E: Float64Array, sizes_S: Float64Array) -> float:
    """Probability, 0..1, that two independent tokens of one layer have an expert in common.

    `chose_E` [E]: share of the tokens that chose each expert (0..1); `sizes_S` [S]: share of the tokens with 0, 1, 2,
    ... experts (sums to 1, none with 0; the mean size is the sum of chose_E). A token's set of experts is taken from
    the distribution that is most random given these, P(set) in proportion to the product of its experts' weights w
    (conditional Poisson sampling; Chen, Dempster and Liu 1994). With e_s the s-th elementary symmetric polynomial of w,
    two sets of s and r experts are then disjoint with probability C(s+r, s) e_{s+r} / (e_s e_r).
    Even load: 1 - C(E-k, k) / C(E, k). One expert a token: the sum of the squared shares.
    """
    if (chose_E >= 1.0 - 1e-12).any():
        return 1.0
    w_E = _expert_weights(chose_E[chose_E > 0], sizes_S)
    most = len(sizes_S) - 1
    e = _symmetric_polynomials(w_E, 2 * most)
    disjoint = sum(
        sizes_S[s] * sizes_S[r] * special.comb(s + r, s) * e[s + r] / (e[s] * e[r])
        for s in range(1, most + 1)
        for r in range(1, most + 1)
        if sizes_S[s] and sizes_S[r]
    )
    return float(np.clip(1.0 - disjoint, 0.0, 1.0))


def expected_xlogx(population: Int64Array, chose: Int64Array, drawn: Int64Array) -> Float64Array:
    """Expectation of h ln h, h tokens of a group that chose an expert, if group labels are shuffled over the tokens.

    Arrays of one shape, as is the result, all counts of tokens: `population` that are shuffled, `chose` the expert
    among them, `drawn` into the group. h is then hypergeometric, also where a token chooses several experts, since it
    chooses each once. Summed over groups and experts this gives the mutual information to expect of labels that say
    nothing (Vinh, Epps and Bailey 2010). Exact up to a mean of _SERIES_MEAN, above by a series.
    """
    n, s, d = (values.astype(np.float64).reshape(-1) for values in (population, chose, drawn))
    result: Float64Array = np.zeros(n.size)
    mean = s * d / n
    fixed = (s == n) | (d == n) | (s == 0) | (d == 0)
    result[fixed] = special.xlogy(mean[fixed], mean[fixed])
    large = ~fixed & (mean >= _SERIES_MEAN)
    result[large] = _series_around_mean(n[large], s[large], d[large])
    small = ~fixed & ~large
    result[small] = _summed_over_probabilities(n[small], s[small], d[small])
    return result.reshape(population.shape)


def _expert_weights(chose_E: Float64Array, sizes_S: Float64Array) -> Float64Array:
    """[E] weights with which independent sets choose each expert as often as observed."""
    w_E: Float64Array = chose_E / chose_E.sum()
    for _ in range(_ROUNDS):
        expected_E = _inclusion_probabilities(w_E, sizes_S)
        w_E *= chose_E / expected_E
        w_E /= w_E.sum()
        if np.abs(expected_E - chose_E).max() < _CLOSE:
            break
    return w_E


def _inclusion_probabilities(w_E: Float64Array, sizes_S: Float64Array) -> Float64Array:
    """[E] probability that a set contains each expert."""
    E, most = len(w_E), len(sizes_S) - 1
    # Polynomials of the experts before and after each: their product leaves the expert out, without a difference.
    before, after = np.zeros((E + 1, most)), np.zeros((E + 1, most))
    before[0, 0] = after[E, 0] = 1.0
    for i in range(E):
        before[i + 1] = before[i]
        before[i + 1, 1:] += w_E[i] * before[i, :-1]
        j = E - 1 - i
        after[j] = after[j + 1]
        after[j, 1:] += w_E[j] * after[j + 1, :-1]
    total = _symmetric_polynomials(w_E, most)
    expected_E = np.zeros(E)
    for s in np.flatnonzero(sizes_S[1:]) + 1:
        without_E = np.einsum("ej,ej->e", before[:E, :s], after[1:, s - 1 :: -1][:, :s])
        expected_E += sizes_S[s] * w_E * without_E / total[s]
    return expected_E


def _symmetric_polynomials(w_E: Float64Array, most: int) -> Float64Array:
    """[most+1] elementary symmetric polynomials e_0 .. e_most of the weights."""
    e = np.zeros(most + 1)
    e[0] = 1.0
    for w in w_E:
        e[1:] += w * e[:-1]
    return e


def _series_around_mean(n: Float64Array, s: Float64Array, d: Float64Array) -> Float64Array:
    """h ln h around its mean to the fourth order."""
    mean = s * d / n
    variance = mean * (1 - s / n) * (n - d) / (n - 1)
    third = variance * (n - 2 * s) * (n - 2 * d) / (n * np.maximum(n - 2, 1))
    result: Float64Array = (
        mean * np.log(mean) + variance / (2 * mean) - third / (6 * mean**2) + variance**2 / (4 * mean**3)
    )
    return result


def _summed_over_probabilities(n: Float64Array, s: Float64Array, d: Float64Array) -> Float64Array:
    """h ln h summed over the hypergeometric probabilities, each from the one before."""
    low, high = np.maximum(0.0, s + d - n), np.minimum(s, d)
    mean = s * d / n
    steps = np.minimum(high, np.ceil(mean + 8 * np.sqrt(mean) + 10)) - low
    order = np.argsort(-steps, kind="stable")
    n, s, d, low, steps = n[order], s[order], d[order], low[order], steps[order]
    ways = special.gammaln
    p = np.exp(
        (ways(s + 1) - ways(low + 1) - ways(s - low + 1))
        + (ways(n - s + 1) - ways(d - low + 1) - ways(n - s - d + low + 1))
        - (ways(n + 1) - ways(d + 1) - ways(n - d + 1))
    )
    total = p * special.xlogy(low, low)
    # Longest first, so that the cells still summed are always the first ones.
    for step in range(int(steps[0]) if steps.size else 0):
        left = int(np.searchsorted(-steps, -step, side="left"))
        h = low[:left] + step
        p = p[:left] * (s[:left] - h) * (d[:left] - h) / ((h + 1) * (n[:left] - s[:left] - d[:left] + h + 1))
        total[:left] += p * special.xlogy(h + 1, h + 1)
    result: Float64Array = np.empty_like(total)
    result[order] = total
    return result
