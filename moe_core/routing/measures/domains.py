"""What experts know of domains, and which prefer which. Null: domain labels shuffled over whole sources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import lgamma, log
from typing import Any

import numpy as np
import pandas as pd

from moe_core.routing.measures.against_chance import (
    CHANCE,
    FEW_DOCUMENTS,
    NOTHING_THERE,
    certainty_words,
    finding_of,
    interval_words,
    not_tested,
    tested,
)
from moe_core.routing.measures.measure import Bars, Plant, RandomRouting
from moe_core.routing.measures.term import Term
from moe_core.routing.measures.used import extent_of_test, used
from moe_core.routing.statistics.bootstrap import by_domain
from moe_core.routing.statistics.information import Estimate, join_estimates, nmi, nmi_estimate
from moe_core.routing.statistics.intervals import wilson_of_clusters
from moe_core.routing.statistics.jackknife import source_groups
from moe_core.routing.statistics.label_permutation import labelled_shares
from moe_core.routing.statistics.multiple_comparisons import MIN_EXPECTED, SIGNIFICANCE, Pool, adjust
from moe_core.routing.statistics.permutation import check_permutations
from moe_core.routing.trace.blocks import BlockCounts, block_counts
from moe_core.routing.trace.counts import domain_counts
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.routing.trace.shares import entropy, mutual_information, normalised, ratio
from moe_core.routing.trace.trace import AnyRouting
from moe_core.routing.trace.types import BoolArray, Float64Array, Int64Array
from moe_core.words import count_of, layers_named, number, percent


def domain_specialization(trace: AnyRouting) -> pd.DataFrame:
    """How often a domain's tokens choose an expert (OLMoE, 2409.02060, eq. 7), with a 95 % interval.

    Columns: layer, expert, domain;
    tokens = N_eD, the domain's assignments to the expert; domain_tokens = N_D;
    share = N_eD / N_D, 0..1, the part of the domain's tokens that chose the expert (sums to K over experts);
    lift = share / (K/E), chance 1, at most E/K; where the rule varies the number of experts
    (RoutingTrace.varying_experts), K is the layer's mean number;
    low, high: interval of the share; lift_low, lift_high: of the lift;
    uncertain = the interval of the lift holds 1, or there is no interval (fewer than two sources in the domain).

    Tokens of a source are alike, so the interval is Wilson's with the tokens divided by the design effect: the
    variance of the share over sources against that of independent tokens (Korn and Graubard, 1998).
    """
    return specialization_of(trace, block_counts(trace))


def specialization_of(trace: AnyRouting, parts: BlockCounts) -> pd.DataFrame:
    """domain_specialization of a trace whose blocks are counted already."""
    M = len(trace.domains)
    of_domain_MN = parts.domain_ids == np.arange(M)[:, None]
    counts_LME = np.stack([parts.counts[:, own].sum(axis=1) for own in of_domain_MN], axis=1)
    tokens_M = of_domain_MN @ parts.tokens
    L, M, E = counts_LME.shape
    share_LME = ratio(counts_LME, tokens_M[:, None])
    low_LME, high_LME = _share_intervals(parts, of_domain_MN, share_LME)
    chosen_L = ratio(counts_LME.sum(axis=(1, 2)), tokens_M.sum())
    even_L = (chosen_L if trace.varying_experts else np.full(L, trace.top_k)) / E
    frame = pd.DataFrame(
        {
            "layer": np.repeat(trace.layers, M * E),
            "expert": np.tile(np.arange(E), L * M),
            "domain": np.tile(np.repeat(np.array(trace.domains, dtype=object), E), L),
            "tokens": counts_LME.reshape(-1),
            "domain_tokens": np.tile(np.repeat(tokens_M, E), L),
            "share": share_LME.reshape(-1),
            "lift": ratio(share_LME, even_L[:, None, None]).reshape(-1),
            "low": low_LME.reshape(-1),
            "high": high_LME.reshape(-1),
            "lift_low": ratio(low_LME, even_L[:, None, None]).reshape(-1),
            "lift_high": ratio(high_LME, even_L[:, None, None]).reshape(-1),
        }
    )
    return frame.assign(uncertain=~((frame["lift_low"] > 1) | (frame["lift_high"] < 1)))


def domain_nmi(trace: AnyRouting) -> pd.DataFrame:
    """How much one expert choice tells about the token's domain.

    Columns: layer; nmi = I(expert; domain) / H(domain), 0 = nothing .. 1 = the domain is certain; NaN with one domain;
    information_nats = I(expert; domain), over assignments; domain_entropy_nats = H(domain).
    Never 0 on finite data, even by chance: hold it against baselines.domain_nmi, and context_independence.
    """
    counts_LME = domain_counts(trace)
    return pd.DataFrame(
        {
            "layer": trace.layers,
            "nmi": nmi_of_counts(counts_LME),
            "information_nats": mutual_information(counts_LME),
            "domain_entropy_nats": entropy(counts_LME.sum(axis=-1)),
        }
    )


def domain_divergence(trace: AnyRouting) -> pd.DataFrame:
    """How differently two domains use the experts: Jensen-Shannon divergence of their expert distributions q.

    Columns: layer, domain_i, domain_j (each pair once, in the order of trace.domains),
    jsd = H((q_i + q_j) / 2) - (H(q_i) + H(q_j)) / 2 in nats, 0 = alike .. ln 2 = 0.693 = no expert in common.
    Source: Lin 1991; scipy.spatial.distance.jensenshannon is its square root.
    """
    q_LME = normalised(domain_counts(trace))
    H_LM = entropy(q_LME)
    rows = [
        (layer, trace.domains[i], trace.domains[j], float(entropy((q_ME[i] + q_ME[j]) / 2) - (H_M[i] + H_M[j]) / 2))
        for layer, q_ME, H_M in zip(trace.layers, q_LME, H_LM, strict=True)
        for i in range(len(trace.domains))
        for j in range(i + 1, len(trace.domains))
    ]
    frame = pd.DataFrame(rows, columns=["layer", "domain_i", "domain_j", "jsd"])
    return frame.assign(jsd=frame["jsd"].astype(float).clip(lower=0.0))


def nmi_of_counts(counts_ME: Int64Array | Float64Array) -> Float64Array:
    """I(domain; expert) / H(domain) of joint counts [...,M,E]; NaN where only one domain has tokens."""
    return nmi(counts_ME.swapaxes(-1, -2))


def _share_intervals(
    parts: BlockCounts, of_domain_MN: BoolArray, share_LME: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """(low, high) of domain_specialization's shares; NaN for a domain with fewer than two sources."""
    low, high = np.full(share_LME.shape, np.nan), np.full(share_LME.shape, np.nan)
    for m, own in enumerate(of_domain_MN):
        if own.sum() > 1:
            for row, counts_NE in enumerate(parts.counts):
                low[row, m], high[row, m] = wilson_of_clusters(counts_NE[own], parts.tokens[own], share_LME[row, m])
    return low, high


DOMAIN_FINDING = finding_of("knows the domain of a token", "better")
# Excess NMI over chance from which an expert choice says something useful about the domain. Measured: genres of one
# language reach .001-.003 in a small model, significant and of no use; really different domains .04-.2.
CLEAR_EFFECT = 0.02

_CHUNK_NUMBERS = 2**21  # counts of several permutations are evaluated together, in about this much memory

CLEARLY, SLIGHTLY = DOMAIN_FINDING.both
ONE_DOMAIN = "cannot be tested: one domain only"
NO_SOURCES = "cannot be tested: the counts do not tell sources apart"


def domain_nmi_test(trace: AnyRouting, permutations: int = 200, seed: int = 0) -> pd.DataFrame:
    """metrics.domain_nmi against label permutation by source: do experts know a token's domain?

    The domain labels are shuffled over whole sources, since tokens of one source are alike whatever its domain.
    Columns, one row per layer: layer, nmi; null_mean, null_p99 (99th percentile) of the shuffled nmi;
    p_value = (1 + #{null >= nmi}) / (1 + permutations), 0..1; p_adjusted over the layers;
    effect = nmi - null_mean, the size; estimate = nmi without the bias of few tokens (information.nmi_estimate), with
    its interval low, high; tokens, documents and what else `used` says; sources (blocks of tokens that were shuffled);
    verdict = CLEARLY (p_adjusted <= 0.05 and effect >= 0.02), SLIGHTLY (significant but smaller), CHANCE, or why it
    cannot be tested (NaN values): ONE_DOMAIN, or FEW_DOCUMENTS where not even a perfect split could reach 5 %.
    """
    check_permutations(permutations)
    parts, M = block_counts(trace), len(trace.domains)
    nmi_L = nmi_of_counts(by_domain(parts.counts, parts.domain_ids, M))
    untestable = why_untestable(trace, parts.domain_ids)
    null_PL = np.full((permutations, trace.num_layers), np.nan)
    if not untestable:
        shuffled = _shuffled_counts(parts, permutations, np.random.default_rng(seed))
        null_PL = np.concatenate([nmi_of_counts(counts_PMLE.transpose(0, 2, 1, 3)) for counts_PMLE, _ in shuffled])
    return tested(
        {"layer": trace.layers, "nmi": nmi_L},
        null_PL,
        _unknown(trace.num_layers) if untestable == NO_SOURCES else nmi_estimate_of_domains(trace, parts, seed),
        finding=DOMAIN_FINDING,
        clear_effect=CLEAR_EFFECT,
        untestable=[untestable] * trace.num_layers,
        sampled=None,
        used=used(trace),
        sources=len(parts.tokens),
    )


def _unknown(layers: int) -> Estimate:
    """Nothing says how alike the tokens of counts without sources are: neither the bias nor an interval is known."""
    return join_estimates([(np.nan, np.nan, np.nan)] * layers)


def nmi_estimate_of_domains(trace: AnyRouting, parts: BlockCounts, seed: int) -> Estimate:
    """[L] nmi of a trace whose blocks are counted without the bias of few tokens, with its interval."""
    M, sources = len(trace.domains), source_groups(trace, seed)
    shape = (sources.groups.count, M, trace.num_experts)
    place_N, estimates = (sources.of_blocks(parts, M), parts.domain_ids), []
    for counts_NE in parts.counts:
        counts_GME = np.zeros(shape, dtype=np.int64)
        np.add.at(counts_GME, place_N, counts_NE)
        estimates.append(nmi_estimate(counts_GME.swapaxes(1, 2), sources.groups))
    return join_estimates(estimates)


def domain_cells(trace: AnyRouting, permutations: int = 200, seed: int = 0) -> pd.DataFrame:
    """metrics.domain_specialization, each cell tested: does this domain choose this expert other than the rest does?

    The columns of the measure (its interval included), and: expected (mean share after label permutation by source, as
    in domain_nmi: what text of any domain gives); p_value, two-sided, of the difference from the rest over its own
    error (statistics.label_permutation: domains may differ in how long and how alike their sources are), NaN where it
    cannot be tested: one domain, too few sources, or fewer than 5 tokens expected (see Pool);
    p_adjusted over all cells (Benjamini-Hochberg); uncertain = p_adjusted is not SIGNIFICANCE or less. It takes the
    place of the measure's own `uncertain`, which says whether one cell's lift differs from 1 and of hundreds of cells
    of chance names one in twenty. tested_tokens, trace_tokens and so on, see used.extent_of_test: all of the trace;
    knows_sources = False for counts that do not tell them apart.
    """
    check_permutations(permutations)
    parts = block_counts(trace)
    frame = specialization_of(trace, parts).assign(**extent_of_test(trace))
    M = len(trace.domains)
    frame["knows_sources"] = not isinstance(trace, RoutingCounts) or trace.knows_sources
    if why_untestable(trace, parts.domain_ids):
        return frame.assign(expected=np.nan, p_value=np.nan, p_adjusted=np.nan, uncertain=True)
    shares = labelled_shares(parts, M, permutations, np.random.default_rng(seed))
    tokens_LME = shares.expected * frame["domain_tokens"].to_numpy().reshape(-1, M, trace.num_experts)
    p_values = _p_of_cells(np.abs(shares.difference), np.nan_to_num(tokens_LME) >= MIN_EXPECTED)
    adjusted = adjust(p_values)
    return frame.assign(
        expected=shares.expected.reshape(-1),
        p_value=p_values,
        p_adjusted=adjusted,
        uncertain=~(adjusted <= SIGNIFICANCE),
    )


def _p_of_cells(away_PLME: Float64Array, tested_LME: BoolArray) -> Float64Array:
    """[L M E] p-values of distances, row 0 as observed. Domains of few and of many sources have other laws of it: each
    domain's cells are held against their own draws."""
    p_LME = np.full(tested_LME.shape, np.nan)
    for m in range(len(p_LME[0])):
        pool, away_PC = Pool(), away_PLME[:, :, m].reshape(len(away_PLME), -1)
        pool.add_distances(np.nan_to_num(away_PC), tested_LME[:, m].reshape(-1) & ~np.isnan(away_PC[0]))
        p_LME[:, m] = pool.p_values().reshape(len(p_LME), -1)
    return p_LME.reshape(-1)


def _shuffled_counts(
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


def why_untestable(trace: AnyRouting, domain_ids_N: Int64Array) -> str:
    """Why labels of these blocks cannot be tested at 5 %, or ""."""
    sizes = np.unique(domain_ids_N, return_counts=True)[1]
    if len(sizes) < 2:
        return ONE_DOMAIN
    if isinstance(trace, RoutingCounts) and not trace.knows_sources:
        return NO_SOURCES
    # Different ways to deal N blocks to the domains; swapping two domains of equal size leaves the NMI as it is.
    ways = lgamma(sizes.sum() + 1) - sum(lgamma(n + 1) for n in sizes)
    ways -= sum(lgamma(n + 1) for n in np.unique(sizes, return_counts=True)[1])
    return "" if ways >= log(1 / SIGNIFICANCE) - 1e-9 else FEW_DOCUMENTS


def strongest_layer(nmi: pd.DataFrame) -> int | None:
    """The layer whose experts know a token's domain most, as domain_verdict names it; None where none surely does."""
    found = nmi[nmi["verdict"].isin([CLEARLY, SLIGHTLY])]
    return None if found.empty else int(found["layer"].iloc[int(found["effect"].argmax())])


def domain_verdict(nmi: pd.DataFrame) -> str:
    """Do experts know a token's domain? From baselines.domain_nmi, all layers or the rows of one."""
    verdicts = set(nmi["verdict"])
    if ONE_DOMAIN in verdicts:
        return "All text is of one domain, as far as is known: whether experts know a token's domain cannot be tested."
    if NO_SOURCES in verdicts:
        return (
            "Whether experts know a token's domain cannot be tested, as the counts do not tell the sources of a domain "
            "apart."
        )
    if FEW_DOCUMENTS in verdicts:
        documents = count_of(int(nmi["sources"].iloc[0]), "document")
        return f"Too few documents to tell ({documents}): trace more of each domain before reading this map."
    layer = strongest_layer(nmi)
    if layer is None:
        return f"{NOTHING_THERE[:-1]}{not_tested(nmi)}."
    best = nmi[nmi["layer"] == layer].iloc[0]
    where = f"layer {int(best['layer'])} most, " if len(nmi) > 1 else ""
    size = (
        f"{where}NMI {interval_words(best, number)}; as counted {number(best['nmi'])} against "
        f"{number(best['null_mean'])} by chance ({certainty_words(best)})"
    )
    others = nmi[nmi["verdict"] == CHANCE]
    rest = f"; {layers_named(others['layer'])} not distinguishable from chance" if len(others) else ""
    rest += not_tested(nmi)
    if best["verdict"] == CLEARLY:
        return f"Experts know a token's domain: {size}{rest}."
    return f"Experts know a token's domain only slightly better than chance: {size}, too little to rely on{rest}."


def domain_cell(cell: Mapping[str, Any] | pd.Series[Any]) -> str:
    """One row of baselines.domain_cells as a sentence without a full stop, for tooltips and captions."""
    if pd.isna(cell["share"]):
        return f"no {cell['domain']} tokens in this trace"
    text = (
        f"expert {cell['expert']} takes {percent(cell['share'])} of {cell['domain']} tokens, "
        f"{number(cell['lift'])} times its even share"
    )
    if pd.isna(cell["lift_low"]):
        why = "of one source only" if cell.get("knows_sources", True) else "no sources are told apart"
        return f"{text}; {why}, so uncertain" if cell["uncertain"] else text
    text += f", 95 % interval {number(cell['lift_low'])} to {number(cell['lift_high'])}"
    if cell["uncertain"] and pd.isna(cell.get("p_value", 0.0)):
        return f"{text}: too little text to test"
    return f"{text}: uncertain" if cell["uncertain"] else text


def preferred(cells: pd.DataFrame) -> pd.DataFrame:
    """The rows of baselines.domain_cells that are preferences, the surest first.

    A preference is certain and goes beyond both the even share and what text of any domain gives the expert: a busy
    expert is above its even share everywhere, and may still be avoided by a domain.
    """
    beyond = (cells["lift"] > 1) & (cells["share"] > cells["expected"])
    found = cells[beyond & ~cells["uncertain"].astype(bool)]
    return found.sort_values("lift_low", ascending=False, kind="stable")


def strongest_expert(cells: pd.DataFrame) -> str:
    """The expert that a domain most surely prefers, from baselines.domain_cells."""
    certain = preferred(cells)
    if certain.empty:
        return "No single expert is surely preferred by any domain."
    best = certain.iloc[0]
    return f"Strongest: in layer {best['layer']}, {domain_cell(best)}."


NMI_TERMS = (
    Term(
        "NMI",
        "Normalised mutual information: how much of a token's domain one expert choice gives away, 0 to 1.",
        "I(expert; domain) / H(domain)",
        "its null, a little above 0",
        "Shannon 1948",
    ),
    Term(
        "null of domains",
        "Domain labels shuffled over whole sources: every source keeps its choices.",
        "labels permuted by source",
    ),
)


SPECIALIZATION_TERMS = (
    Term(
        "domain specialization",
        "The part of a domain's tokens that chose an expert.",
        "N_eD / N_D",
        "K/E",
        "2409.02060, eq. 7",
    ),
)


DIVERGENCE_TERMS = (
    Term(
        "JSD",
        "Jensen-Shannon divergence: how differently two domains use the experts, in nats.",
        "H((q_i + q_j)/2) - (H(q_i) + H(q_j))/2",
        "0 = alike, 0.693 = no expert in common",
        "Lin 1991",
    ),
)


def _bar_sentence(row: Any) -> str:
    if pd.isna(row.nmi) or pd.isna(row.null_p99):
        return f"Layer {row.layer}: {row.verdict}."
    return (
        f"Layer {row.layer}: one expert choice carries {interval_words(row, percent)} of what there is to know about "
        f"the token's domain; as counted {percent(row.nmi)}, by chance at most {percent(row.null_p99)} "
        f"(99th percentile of shuffled labels, {certainty_words(row)}): {row.verdict}."
    )


NMI_BARS = Bars(
    figure="domain_nmi",
    title="What experts know of domains",
    axis="NMI of expert and domain (0 = tells nothing, 1 = tells the domain)",
    sentence=_bar_sentence,
)


def _plant_domains(routing: RandomRouting) -> None:
    """Domain m prefers expert m."""
    routing.logits[:, np.arange(len(routing.domain_ids)), routing.domain_ids] += routing.strength


def _planted_cells_found(cells: pd.DataFrame) -> bool:
    planted = cells[cells["domain"] == "domain " + cells["expert"].astype(str)]
    return bool((~planted["uncertain"] & (planted["share"] > planted["expected"])).all())


NMI_PLANT, CELLS_PLANT = Plant(_plant_domains), Plant(_plant_domains, _planted_cells_found)
