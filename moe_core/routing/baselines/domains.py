"""Do experts know a token's domain? Domain labels shuffled over whole documents."""

from __future__ import annotations

from math import lgamma, log

import numpy as np
import pandas as pd

from moe_core.routing.baselines.findings import DOMAIN
from moe_core.routing.baselines.significance import (
    FEW_DOCUMENTS,
    SIGNIFICANCE,
    adjust,
    check_permutations,
    judge,
    p_values,
)
from moe_core.routing.counts import blocks, grouped_counts
from moe_core.routing.metrics.domains import domain_nmi as measured
from moe_core.routing.metrics.domains import nmi_of_counts
from moe_core.routing.trace import RoutingTrace
from moe_core.routing.types import Float64Array, Int64Array

# Excess NMI over chance from which an expert choice says something useful about the domain. Measured: genres of one
# language reach .001-.003 in a small model, significant and of no use; really different domains .04-.2.
CLEAR_EFFECT = 0.02

_CHUNK_NUMBERS = 2**21  # counts of several permutations are evaluated together, in about this much memory

CLEARLY, SLIGHTLY = DOMAIN.both
ONE_DOMAIN = "cannot be tested: one domain only"


def domain_nmi(trace: RoutingTrace, permutations: int = 200, seed: int = 0) -> pd.DataFrame:
    """metrics.domain_nmi against label permutation by document: do experts know a token's domain?

    The domain labels are shuffled over whole documents, since tokens of one document are alike whatever its domain.
    Columns, one row per layer: layer, nmi; null_mean, null_p99 (99th percentile) of the shuffled nmi;
    p_value = (1 + #{null >= nmi}) / (1 + permutations), 0..1; p_adjusted over the layers;
    effect = nmi - null_mean, the size; documents (that could be shuffled);
    verdict = CLEARLY (p_adjusted <= 0.05 and effect >= 0.02), SLIGHTLY (significant but smaller), CHANCE, or why it
    cannot be tested (NaN values): ONE_DOMAIN, or FEW_DOCUMENTS where not even a perfect split could reach 5 %.
    """
    check_permutations(permutations)
    parts = blocks(trace)
    shape = (len(parts.tokens), trace.num_experts)
    counts_LNE = np.stack([grouped_counts(layer_TK, parts.of_token, shape) for layer_TK in trace.router_indices])
    nmi_L = measured(trace)["nmi"].to_numpy()
    untestable = _untestable(parts.domain_ids)
    if untestable:
        null_PL = np.full((permutations, trace.num_layers), np.nan)
        p_L = adjusted_L = np.full(trace.num_layers, np.nan)
    else:
        null_PL = _shuffled_nmi(counts_LNE, parts.domain_ids, permutations, np.random.default_rng(seed))
        p_L = p_values(nmi_L, null_PL)
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
            "verdict": [
                untestable or judge(p, effect, clear_effect=CLEAR_EFFECT, clearly=CLEARLY, slightly=SLIGHTLY)
                for p, effect in zip(adjusted_L, effect_L, strict=True)
            ],
        }
    )


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
        null.append(nmi_of_counts(counts_PMX.reshape(-1, M, L, E).transpose(0, 2, 1, 3)))
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
