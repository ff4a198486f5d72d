"""Is a measure more than chance? Each headline measure against its own null model.

A verdict needs both: significance (above the null) and size (large enough to matter), never a bare p. With several
layers the p-values are adjusted (Benjamini-Hochberg), so that one of many layers does not look special by luck.
"""

from __future__ import annotations

from math import lgamma, log

import numpy as np
import pandas as pd

from moe_core.errors import UsageError
from moe_core.routing import metrics
from moe_core.routing.counts import blocks, grouped_counts
from moe_core.routing.trace import RoutingTrace
from moe_core.routing.types import Float64Array, Int64Array

SIGNIFICANCE = 0.05
# Excess NMI over chance from which an expert choice says something useful about the domain. Measured: genres of one
# language reach .001-.003 in a small model, significant and of no use; really different domains .04-.2.
CLEAR_EFFECT = 0.02

_CHUNK_NUMBERS = 2**21  # counts of several permutations are evaluated together, in about this much memory

CLEARLY = "knows the domain of a token clearly better than chance"
SLIGHTLY = "knows the domain of a token slightly better than chance"
CHANCE = "not distinguishable from chance"
ONE_DOMAIN = "cannot be tested: one domain only"
FEW_DOCUMENTS = "cannot be tested: too few documents"


def domain_nmi(trace: RoutingTrace, permutations: int = 200, seed: int = 0) -> pd.DataFrame:
    """metrics.domain_nmi against label permutation by document: do experts know a token's domain?

    The domain labels are shuffled over whole documents, since tokens of one document are alike whatever its domain.
    Columns, one row per layer: layer, nmi; null_mean, null_p99 (99th percentile) of the shuffled nmi;
    p_value = (1 + #{null >= nmi}) / (1 + permutations), 0..1; p_adjusted over the layers;
    effect = nmi - null_mean, the size; documents (that could be shuffled);
    verdict = CLEARLY (p_adjusted <= 0.05 and effect >= 0.02), SLIGHTLY (significant but smaller), CHANCE, or why it
    cannot be tested (NaN values): ONE_DOMAIN, or FEW_DOCUMENTS where not even a perfect split could reach 5 %.
    """
    if permutations < 1:
        raise UsageError(f"permutations is {permutations}; expected 1 or more, e.g. 200")
    parts = blocks(trace)
    shape = (len(parts.tokens), trace.num_experts)
    counts_LNE = np.stack([grouped_counts(layer_TK, parts.of_token, shape) for layer_TK in trace.router_indices])
    nmi_L = metrics.domain_nmi(trace)["nmi"].to_numpy()
    untestable = _untestable(parts.domain_ids)
    if untestable:
        null_PL = np.full((permutations, trace.num_layers), np.nan)
        p_L = adjusted_L = np.full(trace.num_layers, np.nan)
    else:
        null_PL = _shuffled_nmi(counts_LNE, parts.domain_ids, permutations, np.random.default_rng(seed))
        # Rounding must not let a permutation that gives the very same split count as smaller.
        p_L = (1 + (null_PL >= nmi_L - 1e-12).sum(axis=0)) / (1 + permutations)
        adjusted_L = adjust(p_L)
    null_mean_L = null_PL.mean(axis=0)
    effect_L = nmi_L - null_mean_L
    return pd.DataFrame(
        {
            "layer": trace.layers,
            "nmi": nmi_L,
            "null_mean": null_mean_L,
            "null_p99": np.quantile(null_PL, 0.99, axis=0),
            "p_value": p_L,
            "p_adjusted": adjusted_L,
            "effect": effect_L,
            "documents": len(parts.tokens),
            "verdict": [untestable or _verdict(p, effect) for p, effect in zip(adjusted_L, effect_L, strict=True)],
        }
    )


def adjust(p_values: Float64Array) -> Float64Array:
    """Benjamini-Hochberg adjusted p-values: at most this share of what one calls significant is luck.

    NaN stays NaN. As scipy.stats.false_discovery_control, whose import takes a second that the dashboard has not.
    """
    adjusted = np.full(p_values.shape, np.nan)
    order = np.argsort(p_values)[: int((~np.isnan(p_values)).sum())]  # NaN sorts last
    inflated = p_values[order] * len(order) / np.arange(1, len(order) + 1)
    adjusted[order] = np.minimum.accumulate(inflated[::-1])[::-1].clip(max=1.0)
    return adjusted


def _shuffled_nmi(
    counts_LNE: Int64Array, domain_ids_N: Int64Array, permutations: int, rng: np.random.Generator
) -> Float64Array:
    """[P,L] nmi after shuffling the labels of the N blocks; all layers share a shuffle."""
    L, _, E = counts_LNE.shape
    # Blocks ordered by domain: dealing them out anew in this order is the same as shuffling the labels.
    starts = np.unique(np.sort(domain_ids_N), return_index=True)[1]
    counts_NX = np.ascontiguousarray(counts_LNE.transpose(1, 0, 2)).reshape(-1, L * E)
    M = len(starts)
    together = max(1, _CHUNK_NUMBERS // (L * M * E))
    null = []
    for start in range(0, permutations, together):
        shuffles = (rng.permutation(len(counts_NX)) for _ in range(min(together, permutations - start)))
        counts_PMX = np.stack([np.add.reduceat(counts_NX[shuffle], starts, axis=0) for shuffle in shuffles])
        null.append(metrics.nmi_of_counts(counts_PMX.reshape(-1, M, L, E).transpose(0, 2, 1, 3)))
    return np.concatenate(null)


def _untestable(domain_ids_N: Int64Array) -> str:
    """Why labels of these blocks cannot be tested at 5 %, or ""."""
    sizes = np.unique(domain_ids_N, return_counts=True)[1]
    if len(sizes) < 2:
        return ONE_DOMAIN
    # Different ways to deal N blocks to the domains; swapping two domains of equal size leaves the NMI as it is.
    ways = lgamma(sizes.sum() + 1) - sum(lgamma(n + 1) for n in sizes)
    ways -= sum(lgamma(n + 1) for n in np.unique(sizes, return_counts=True)[1])
    return "" if ways >= log(1 / SIGNIFICANCE) - 1e-9 else FEW_DOCUMENTS


def _verdict(p_adjusted: float, effect: float) -> str:
    if not p_adjusted <= SIGNIFICANCE:
        return CHANCE
    return CLEARLY if effect >= CLEAR_EFFECT else SLIGHTLY
