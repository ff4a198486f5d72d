"""Do experts know a token's domain? Domain labels shuffled over whole sources."""

from __future__ import annotations

from collections.abc import Iterator
from math import lgamma, log

import numpy as np
import pandas as pd

from moe_core.routing.baselines.findings import DOMAIN
from moe_core.routing.measures.against_chance import FEW_DOCUMENTS, tested
from moe_core.routing.measures.domains import nmi_of_counts, specialization_of
from moe_core.routing.statistics.bootstrap import RESAMPLES, by_domain, count_interval
from moe_core.routing.statistics.multiple_comparisons import MIN_EXPECTED, SIGNIFICANCE, Pool, adjust
from moe_core.routing.statistics.permutation import check_permutations
from moe_core.routing.trace.counts import BlockCounts, block_counts, ratio
from moe_core.routing.trace.stored import AnyTrace
from moe_core.routing.trace.types import Int64Array

# Excess NMI over chance from which an expert choice says something useful about the domain. Measured: genres of one
# language reach .001-.003 in a small model, significant and of no use; really different domains .04-.2.
CLEAR_EFFECT = 0.02

_CHUNK_NUMBERS = 2**21  # counts of several permutations are evaluated together, in about this much memory

CLEARLY, SLIGHTLY = DOMAIN.both
ONE_DOMAIN = "cannot be tested: one domain only"


def domain_nmi(trace: AnyTrace, permutations: int = 200, seed: int = 0) -> pd.DataFrame:
    """metrics.domain_nmi against label permutation by source: do experts know a token's domain?

    The domain labels are shuffled over whole sources, since tokens of one source are alike whatever its domain.
    Columns, one row per layer: layer, nmi; null_mean, null_p99 (99th percentile) of the shuffled nmi;
    p_value = (1 + #{null >= nmi}) / (1 + permutations), 0..1; p_adjusted over the layers;
    effect = nmi - null_mean, the size; low, high (95 % interval of nmi, see bootstrap.Units.interval);
    documents (blocks of tokens that could be shuffled);
    verdict = CLEARLY (p_adjusted <= 0.05 and effect >= 0.02), SLIGHTLY (significant but smaller), CHANCE, or why it
    cannot be tested (NaN values): ONE_DOMAIN, or FEW_DOCUMENTS where not even a perfect split could reach 5 %.
    """
    check_permutations(permutations)
    parts, M = block_counts(trace), len(trace.domains)
    nmi_L = nmi_of_counts(by_domain(parts.counts, parts.domain_ids, M))
    untestable = _untestable(parts.domain_ids)
    null_PL = np.full((permutations, trace.num_layers), np.nan)
    if not untestable:
        shuffled = _shuffled(parts, permutations, np.random.default_rng(seed))
        null_PL = np.concatenate([nmi_of_counts(counts_PMLE.transpose(0, 2, 1, 3)) for counts_PMLE, _ in shuffled])
    return tested(
        {"layer": trace.layers, "nmi": nmi_L},
        null_PL,
        count_interval(parts, M, nmi_L, nmi_of_counts, RESAMPLES, seed, (0.0, 1.0)),
        finding=DOMAIN,
        clear_effect=CLEAR_EFFECT,
        untestable=[untestable] * trace.num_layers,
        documents=len(parts.tokens),
    )


def domain_cells(trace: AnyTrace, permutations: int = 200, seed: int = 0) -> pd.DataFrame:
    """metrics.domain_specialization, each cell tested: does this domain choose this expert other than the rest does?

    The columns of the measure (its interval included), and: expected (mean share after label permutation by source, as
    in domain_nmi: what text of any domain gives); p_value, two-sided, NaN where it cannot be tested: one domain, too
    few sources, or fewer than 5 tokens expected (see Pool); p_adjusted over all cells (Benjamini-Hochberg);
    uncertain = p_adjusted is not SIGNIFICANCE or less. It takes the place of the measure's own `uncertain`, which says
    whether one cell's lift differs from 1 and of hundreds of cells of chance names one in twenty.
    """
    check_permutations(permutations)
    parts = block_counts(trace)
    frame = specialization_of(trace, parts)
    E, M = trace.num_experts, len(trace.domains)
    if _untestable(parts.domain_ids):
        return frame.assign(expected=np.nan, p_value=np.nan, p_adjusted=np.nan, uncertain=True)
    present = np.unique(parts.domain_ids)
    # [P,M,L,E] shares after shuffling; how many tokens a domain has depends on the sources it got.
    drawn = [
        ratio(counts_PMLE, tokens_PM[:, :, None, None])
        for counts_PMLE, tokens_PM in _shuffled(parts, permutations, np.random.default_rng(seed))
    ]
    shares_PLME = np.full((1 + permutations, trace.num_layers, M, E), np.nan)
    shares_PLME[0] = frame["share"].to_numpy().reshape(-1, M, E)
    shares_PLME[1:, :, present] = np.concatenate(drawn).transpose(0, 2, 1, 3)
    expected_LME = shares_PLME[1:].mean(axis=0)
    tokens_LME = expected_LME * frame["domain_tokens"].to_numpy().reshape(-1, M, E)
    pool = Pool()
    pool.add(shares_PLME.reshape(1 + permutations, -1), np.nan_to_num(tokens_LME).reshape(-1) >= MIN_EXPECTED)
    p_values = pool.p_values()
    adjusted = adjust(p_values)
    return frame.assign(
        expected=expected_LME.reshape(-1),
        p_value=p_values,
        p_adjusted=adjusted,
        uncertain=~(adjusted <= SIGNIFICANCE),
    )


def _shuffled(
    parts: BlockCounts, permutations: int, rng: np.random.Generator
) -> Iterator[tuple[Int64Array, Int64Array]]:
    """(counts [p,M,L,E], tokens [p,M]) after shuffling the labels of the N blocks, some permutations at a time.

    M: domains that have tokens. All layers share a shuffle.
    """
    L, N, E = parts.counts.shape
    # Blocks ordered by domain: dealing them out anew in this order is the same as shuffling the labels.
    starts = np.unique(np.sort(parts.domain_ids), return_index=True)[1]
    counts_NX = np.ascontiguousarray(parts.counts.transpose(1, 0, 2)).reshape(N, L * E)
    M = len(starts)
    together = max(1, _CHUNK_NUMBERS // (L * M * E))
    for start in range(0, permutations, together):
        shuffles = [rng.permutation(N) for _ in range(min(together, permutations - start))]
        counts_PMX = np.stack([np.add.reduceat(counts_NX[shuffle], starts, axis=0) for shuffle in shuffles])
        tokens_PM = np.stack([np.add.reduceat(parts.tokens[shuffle], starts) for shuffle in shuffles])
        yield counts_PMX.reshape(-1, M, L, E), tokens_PM


def _untestable(domain_ids_N: Int64Array) -> str:
    """Why labels of these blocks cannot be tested at 5 %, or ""."""
    sizes = np.unique(domain_ids_N, return_counts=True)[1]
    if len(sizes) < 2:
        return ONE_DOMAIN
    # Different ways to deal N blocks to the domains; swapping two domains of equal size leaves the NMI as it is.
    ways = lgamma(sizes.sum() + 1) - sum(lgamma(n + 1) for n in sizes)
    ways -= sum(lgamma(n + 1) for n in np.unique(sizes, return_counts=True)[1])
    return "" if ways >= log(1 / SIGNIFICANCE) - 1e-9 else FEW_DOCUMENTS
