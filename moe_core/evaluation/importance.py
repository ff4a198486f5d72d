"""Does anything that can be observed predict which expert matters? Causal effects against observational measures.

Published work finds that it mostly does not (arXiv:2606.10703); this says whether it does in this model. Only arrays
and tables: no model, no torch.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_core.routing.measures.against_chance import CHANCE
from moe_core.routing.measures.causes import STRONG_CORRELATION
from moe_core.routing.measures.domains import domain_specialization
from moe_core.routing.measures.load import expert_load
from moe_core.routing.statistics.bootstrap import draws
from moe_core.routing.statistics.multiple_comparisons import SIGNIFICANCE, adjust
from moe_core.routing.statistics.permutation import p_values
from moe_core.routing.trace.kernels import grouped_counts
from moe_core.routing.trace.trace import RoutingTrace
from moe_core.routing.trace.types import Float64Array

MEASURES = ("load", "specialization", "vocabulary", "confidence", "reap", "ean")
MIN_COUNT = 10
"""Occurrences from which a token type says something of an expert's vocabulary."""

PREDICTS = "predicts which experts matter"
WEAKLY = "predicts only weakly which experts matter"
OPPOSITE = "points the other way: experts that matter have less of it"
TOO_FEW = "cannot be tested: too few experts"


def measures(trace: RoutingTrace, saliency: pd.DataFrame) -> pd.DataFrame:
    """What is seen of each expert without touching it, one row each.

    Columns: layer, expert; load = its share of the assignments, 0..1;
    specialization = its largest lift over the domains, from domain_specialization, NaN with fewer than two;
    vocabulary = how exclusively the token types it receives go to it: the mean, over its assignments, of the share of
    that type's occurrences that chose it, 0..1 (token types with at least MIN_COUNT; after OLMoE, 2409.02060, eq. 8);
    confidence = the mean combine weight among tokens that chose it; NaN for an expert that nobody chose;
    reap, ean: from expert_saliency of the same text.
    """
    load = expert_load(trace)[["layer", "expert", "share"]].rename(columns={"share": "load"})
    frame = load.merge(_specialization(trace), on=["layer", "expert"])
    frame["vocabulary"] = _vocabulary(trace).ravel()
    frame["confidence"] = _confidence(trace).ravel()
    return frame.merge(saliency[["layer", "expert", "reap", "ean"]], on=["layer", "expert"], how="left")


def importance(effects: pd.DataFrame, observed: pd.DataFrame) -> pd.DataFrame:
    """Effects of ablation_map on all text beside what `measures` observed; experts that both know.

    Columns: layer, expert, delta_nats, low, high, then those of `measures`.
    """
    causal = effects.loc[effects["domain"] == "all", ["layer", "expert", "delta_nats", "low", "high"]]
    return causal.merge(observed, on=["layer", "expert"]).reset_index(drop=True)


def rank_correlations(
    frame: pd.DataFrame, *, resamples: int = 1000, permutations: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Rank correlation of each measure with delta_nats, from `importance`; one row per measure.

    Ranks are taken within a layer, since a layer that matters more would else carry every measure that grows with
    depth: rho answers "which expert of a layer matters?". With one layer it is Spearman's coefficient.
    Columns: measure; rho, -1..1, 0 by chance; low, high: 95 % interval, experts drawn anew within their layers;
    p_value, two-sided, effects shuffled within layers; p_adjusted (Benjamini-Hochberg over the measures);
    n experts; verdict in words; rho_pooled, Spearman's coefficient over all experts, layers ignored.
    Experts without a finite value are left out; NaN and TOO_FEW where fewer than four are left to compare.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for measure in MEASURES:
        known = frame[np.isfinite(frame[measure]) & np.isfinite(frame["delta_nats"])]
        groups = [
            (group[measure].to_numpy(np.float64), group["delta_nats"].to_numpy(np.float64))
            for _, group in known.groupby("layer")
            if len(group) > 1
        ]
        n = sum(len(x) for x, _ in groups)
        rho = float(_rho(groups)[0]) if n >= 4 else float("nan")
        low, high, p = (float("nan"),) * 3 if np.isnan(rho) else _certainty(groups, rho, resamples, permutations, rng)
        pooled = float(_rho([(known[measure].to_numpy(np.float64), known["delta_nats"].to_numpy(np.float64))])[0])
        rows.append((measure, rho, low, high, p, n, pooled))
    table = pd.DataFrame(rows, columns=["measure", "rho", "low", "high", "p_value", "n", "rho_pooled"])
    table.insert(5, "p_adjusted", adjust(table["p_value"].to_numpy(np.float64)))
    words = [_correlation_words(rho, p) for rho, p in zip(table["rho"], table["p_adjusted"], strict=True)]
    table.insert(7, "verdict", words)
    return table


def _correlation_words(rho: float, p_adjusted: float) -> str:
    if np.isnan(rho):
        return TOO_FEW
    if not p_adjusted <= SIGNIFICANCE:
        return CHANCE
    if rho < 0:
        return OPPOSITE
    return PREDICTS if rho >= STRONG_CORRELATION else WEAKLY


def _certainty(
    groups: list[tuple[Float64Array, Float64Array]],
    rho: float,
    resamples: int,
    permutations: int,
    rng: np.random.Generator,
) -> tuple[float, float, float]:
    """(low, high, p_value) of rank_correlations."""
    drawn = [draws(len(x), resamples, rng) for x, _ in groups]
    low, high = np.nanquantile(_rho(groups, drawn), [0.025, 0.975])
    null_P, norms = np.zeros(permutations), np.zeros(2)
    for x, y in groups:
        ranks_x, ranks_y = (_ranks(values, np.ones((1, len(values))))[0] for values in (x, y))
        null_P += rng.permuted(np.tile(ranks_y, (permutations, 1)), axis=1) @ ranks_x
        norms += [ranks_x @ ranks_x, ranks_y @ ranks_y]
    p = p_values(np.array([abs(rho)]), np.abs(null_P / np.sqrt(norms.prod()))[:, None])
    return float(low), float(high), float(p[0])


def _rho(groups: list[tuple[Float64Array, Float64Array]], weights: list[Float64Array] | None = None) -> Float64Array:
    """[R] correlation of ranks within groups, for R weightings [R, n] of each group's members (None = one of ones).

    NaN where either side does not vary within any group.
    """
    products, norms_x, norms_y = (np.zeros(1 if weights is None else len(weights[0])) for _ in range(3))
    for number, (x, y) in enumerate(groups):
        weights_RN = np.ones((1, len(x))) if weights is None else weights[number]
        ranks_x, ranks_y = _ranks(x, weights_RN), _ranks(y, weights_RN)
        products += (weights_RN * ranks_x * ranks_y).sum(axis=1)
        norms_x += (weights_RN * ranks_x**2).sum(axis=1)
        norms_y += (weights_RN * ranks_y**2).sum(axis=1)
    scale = np.sqrt(norms_x * norms_y)
    rho: Float64Array = np.divide(products, scale, out=np.full(len(scale), np.nan), where=scale > 0)
    return rho


def _ranks(values_N: Float64Array, weights_RN: Float64Array) -> Float64Array:
    """[R, N] average rank of each value, centred on 0, where value j occurs weights[r, j] times."""
    below_NN = (values_N[None, :] < values_N[:, None]) + 0.5 * (values_N[None, :] == values_N[:, None])
    ranks: Float64Array = weights_RN @ below_NN.T - weights_RN.sum(axis=1, keepdims=True) / 2
    return ranks


def _specialization(trace: RoutingTrace) -> pd.DataFrame:
    table = domain_specialization(trace)
    table = table[table["domain_tokens"] > 0]
    best = table.groupby(["layer", "expert"])["lift"].max().rename("specialization").reset_index()
    if table["domain"].nunique() < 2:
        best["specialization"] = np.nan
    return best


def _vocabulary(trace: RoutingTrace) -> Float64Array:
    """[L, E]"""
    _, kinds_T, occurrences = np.unique(trace.token_ids, return_inverse=True, return_counts=True)
    often = occurrences >= MIN_COUNT
    shares = []
    for indices_TK in trace.router_indices:
        counts_VE = grouped_counts(indices_TK[None], kinds_T, (len(occurrences), trace.num_experts))[0, often]
        own_E = counts_VE.sum(axis=0)
        exclusive_E = (counts_VE**2 / occurrences[often, None]).sum(axis=0)
        shares.append(np.divide(exclusive_E, own_E, out=np.full(len(own_E), np.nan), where=own_E > 0))
    return np.stack(shares)


def _confidence(trace: RoutingTrace) -> Float64Array:
    """[L, E]"""
    E = trace.num_experts
    means = []
    for indices_TK, scores_TK in zip(trace.router_indices, trace.router_scores, strict=True):
        used = indices_TK >= 0
        counts_E = np.bincount(indices_TK[used], minlength=E)
        sums_E = np.bincount(indices_TK[used], scores_TK[used], minlength=E)
        means.append(np.divide(sums_E, counts_E, out=np.full(E, np.nan), where=counts_E > 0))
    return np.stack(means)
