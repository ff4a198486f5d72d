"""What experts know of domains, and which prefer which."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_core.routing.statistics.intervals import wilson_of_clusters
from moe_core.routing.trace.counts import (
    BlockCounts,
    block_counts,
    domain_counts,
    entropy,
    mutual_information,
    normalised,
    ratio,
)
from moe_core.routing.trace.stored import AnyTrace
from moe_core.routing.trace.types import BoolArray, Float64Array, Int64Array


def domain_specialization(trace: AnyTrace) -> pd.DataFrame:
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


def specialization_of(trace: AnyTrace, parts: BlockCounts) -> pd.DataFrame:
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


def domain_nmi(trace: AnyTrace) -> pd.DataFrame:
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


def domain_divergence(trace: AnyTrace) -> pd.DataFrame:
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
    return ratio(mutual_information(counts_ME), entropy(counts_ME.sum(axis=-1)))


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
