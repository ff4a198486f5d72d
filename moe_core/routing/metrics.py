"""Measures of routing: one function each, from a RoutingTrace to a tidy DataFrame (one row per observation).

Symbols: T tokens, E experts, K slots per token (top_k), c_e assignments of expert e in a layer, f_e = c_e / sum c.
Whether a value differs from chance is answered in baselines.py. Where a value is undefined (no tokens) it is NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special

from moe_core.routing.counts import (
    blocks,
    domain_counts,
    domain_tokens,
    entropy,
    expert_counts,
    grouped_counts,
    mutual_information,
    ratio,
)
from moe_core.routing.trace import RoutingTrace
from moe_core.routing.types import Float32Array, Float64Array, Int64Array

CONFIDENCE = 0.95
_CHUNK_TOKENS = 65_536  # bounds the memory of per-token probabilities


def expert_load(trace: RoutingTrace) -> pd.DataFrame:
    """How the work is shared: assignments per expert.

    Columns: layer, expert, tokens (assignments, a token counts once for each slot it uses), share (expert_load,
    f_e = c_e / sum c, 0..1, sums to 1 per layer; even = 1/E). Source: f_i of Switch Transformer, 2101.03961, eq. 5.
    """
    counts_LE = expert_counts(trace)
    share_LE = ratio(counts_LE, counts_LE.sum(axis=1, keepdims=True))
    L, E = counts_LE.shape
    return pd.DataFrame(
        {
            "layer": np.repeat(trace.layers, E),
            "expert": np.tile(np.arange(E), L),
            "tokens": counts_LE.reshape(-1),
            "share": share_LE.reshape(-1),
        }
    )


def load_balance(trace: RoutingTrace) -> pd.DataFrame:
    """How even the load is, one row per layer.

    Columns: layer; tokens (T);
    load_imbalance = max c / mean c, 1..E, 1 = even; max_violation = that - 1 (MaxVio, 2408.15664);
    cv = std(c) / mean(c), >= 0, 0 = even (1701.06538);
    dead_experts = experts without any assignment, 0..E;
    effective_experts = exp(H(f)), 1..E: as many equally loaded experts would have this load entropy;
    gini = sum_i (2i - E - 1) c_(i) / (E sum c), 0 = even .. (E-1)/E = all on one;
    dropped_fraction = unused slots / (T K), 0..1 (capacity overflow or skipped).
    """
    counts_LE = expert_counts(trace).astype(np.float64)
    E = trace.num_experts
    total_L, mean_L = counts_LE.sum(axis=1), counts_LE.mean(axis=1)
    weights_E = 2.0 * np.arange(1, E + 1) - E - 1
    imbalance_L = ratio(counts_LE.max(axis=1), mean_L)
    return pd.DataFrame(
        {
            "layer": trace.layers,
            "tokens": trace.num_tokens,
            "load_imbalance": imbalance_L,
            "max_violation": imbalance_L - 1.0,
            "cv": ratio(counts_LE.std(axis=1), mean_L),
            "dead_experts": (counts_LE == 0).sum(axis=1),
            "effective_experts": np.exp(entropy(counts_LE)),
            "gini": ratio(np.sort(counts_LE, axis=1) @ weights_E, E * total_L),
            "dropped_fraction": 1.0 - total_L / (trace.num_tokens * trace.top_k),
        }
    )


def router_entropy(trace: RoutingTrace) -> pd.DataFrame:
    """How undecided the router is about a token, averaged over tokens.

    Columns: layer;
    router_entropy = mean_t H(p_t) / ln E, 0 = certain .. 1 = uniform over all experts;
    confidence = mean_t max p, 1/E..1; margin = mean_t (largest - second largest p), 0..1;
    basis = "logits": p is over all E experts; "scores": logits were not kept, p is the chosen experts' weights divided
    by their sum, so the entropy is at most ln K / ln E: do not compare it with one from logits.
    Tokens without any expert are left out when the basis is scores. At E = 1 there is no choice: entropy 0, margin 1.
    """
    rows = []
    for row, layer in enumerate(trace.layers):
        sums, tokens = np.zeros(3), 0
        for p in _probabilities(trace, row):
            p = p[p.sum(axis=1) > 0]
            two = np.partition(p, -2, axis=1)[:, -2:] if p.shape[1] > 1 else np.pad(p, ((0, 0), (1, 0)))
            sums += [entropy(p).sum(), two[:, 1].sum(), (two[:, 1] - two[:, 0]).sum()]
            tokens += len(p)
        mean = ratio(sums, float(tokens))
        rows.append((layer, mean[0] / np.log(max(trace.num_experts, 2)), mean[1], mean[2]))
    frame = pd.DataFrame(rows, columns=["layer", "router_entropy", "confidence", "margin"])
    return frame.assign(basis=_basis(trace))


def token_entropy(trace: RoutingTrace, layer: int) -> Float32Array:
    """[T] router entropy of each token in one layer, H(p_t) / ln E, 0..1; basis and exceptions as in router_entropy."""
    parts = [entropy(p) for p in _probabilities(trace, trace.layer_position(layer))]
    normalised: Float32Array = (np.concatenate(parts) / np.log(max(trace.num_experts, 2))).astype(np.float32)
    return normalised


def domain_specialization(trace: RoutingTrace) -> pd.DataFrame:
    """How often a domain's tokens choose an expert (OLMoE, 2409.02060, eq. 7), with a 95 % interval.

    Columns: layer, expert, domain;
    tokens = N_eD, the domain's assignments to the expert; domain_tokens = N_D;
    share = N_eD / N_D, 0..1, the part of the domain's tokens that chose the expert (sums to K over experts);
    lift = share / (K/E), chance 1, at most E/K; low, high: interval of the share; lift_low, lift_high: of the lift;
    uncertain = the interval of the lift holds 1, or there is no interval (fewer than two documents in the domain).

    Tokens of a document are alike, so the interval is Wilson's with the tokens divided by the design effect: the
    variance of the share over documents against that of independent tokens (Korn and Graubard, 1998).
    """
    counts_LME, tokens_M = domain_counts(trace), domain_tokens(trace)
    L, M, E = counts_LME.shape
    share_LME = ratio(counts_LME, tokens_M[:, None])
    low_LME, high_LME = _share_intervals(trace, share_LME)
    even = trace.top_k / E
    frame = pd.DataFrame(
        {
            "layer": np.repeat(trace.layers, M * E),
            "expert": np.tile(np.arange(E), L * M),
            "domain": np.tile(np.repeat(np.array(trace.domains, dtype=object), E), L),
            "tokens": counts_LME.reshape(-1),
            "domain_tokens": np.tile(np.repeat(tokens_M, E), L),
            "share": share_LME.reshape(-1),
            "lift": share_LME.reshape(-1) / even,
            "low": low_LME.reshape(-1),
            "high": high_LME.reshape(-1),
            "lift_low": low_LME.reshape(-1) / even,
            "lift_high": high_LME.reshape(-1) / even,
        }
    )
    return frame.assign(uncertain=~((frame["lift_low"] > 1) | (frame["lift_high"] < 1)))


def domain_nmi(trace: RoutingTrace) -> pd.DataFrame:
    """How much one expert choice tells about the token's domain.

    Columns: layer; nmi = I(expert; domain) / H(domain), 0 = nothing .. 1 = the domain is certain; NaN with one domain;
    information_nats = I(expert; domain), over assignments; domain_entropy_nats = H(domain).
    Never 0 on finite data, even by chance: hold it against baselines.domain_nmi, and against token_nmi.
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


def domain_divergence(trace: RoutingTrace) -> pd.DataFrame:
    """How differently two domains use the experts: Jensen-Shannon divergence of their expert distributions q.

    Columns: layer, domain_i, domain_j (each pair once, in the order of trace.domains),
    jsd = H((q_i + q_j) / 2) - (H(q_i) + H(q_j)) / 2 in nats, 0 = alike .. ln 2 = 0.693 = no expert in common.
    Source: Lin 1991; scipy.spatial.distance.jensenshannon is its square root.
    """
    q_LME = _normalised(domain_counts(trace))
    H_LM = entropy(q_LME)
    rows = [
        (layer, trace.domains[i], trace.domains[j], float(entropy((q_ME[i] + q_ME[j]) / 2) - (H_M[i] + H_M[j]) / 2))
        for layer, q_ME, H_M in zip(trace.layers, q_LME, H_LM, strict=True)
        for i in range(len(trace.domains))
        for j in range(i + 1, len(trace.domains))
    ]
    frame = pd.DataFrame(rows, columns=["layer", "domain_i", "domain_j", "jsd"])
    return frame.assign(jsd=frame["jsd"].astype(float).clip(lower=0.0))


def token_nmi(trace: RoutingTrace, min_count: int = 10) -> pd.DataFrame:
    """How much of the choice of expert the token id alone explains; to be held beside domain_nmi.

    Only token types that occur at least `min_count` times count: one that occurs once is explained by construction.
    Columns: layer; nmi = I(expert; token id) / H(expert), 0..1, 1 = the router looks at the token only, not its
    context; chance = nmi to expect from independence, (types - 1)(E - K) / (2 N H(expert)) over N assignments, first
    order (Miller 1955; E - K rather than E - 1 because a token's K experts differ);
    domain_nmi = I(expert; domain) / H(expert) of the same tokens, in the same unit; tokens, token_types counted.
    """
    _, of_token, occurrences = np.unique(trace.token_ids, return_inverse=True, return_counts=True)
    chosen = occurrences[of_token] >= min_count
    renumber = np.cumsum(occurrences >= min_count) - 1
    groups_T, kinds = renumber[of_token[chosen]], int((occurrences >= min_count).sum())
    rows = []
    for layer, indices_TK in zip(trace.layers, trace.router_indices[:, chosen], strict=True):
        counts_VE = grouped_counts(indices_TK, groups_T, (kinds, trace.num_experts))
        counts_ME = grouped_counts(indices_TK, trace.domain_ids[chosen], (len(trace.domains), trace.num_experts))
        counts_E = counts_VE.sum(axis=0)
        H = entropy(counts_E)
        freedom = max(kinds - 1, 0) * max(int((counts_E > 0).sum()) - trace.top_k, 0)
        information = (
            mutual_information(counts_VE),
            ratio(freedom, 2.0 * counts_E.sum()),
            mutual_information(counts_ME),
        )
        nmi, chance, domain = (float(ratio(nats, H)) for nats in information)
        rows.append((layer, nmi, min(chance, 1.0), domain, int(chosen.sum()), kinds))
    return pd.DataFrame(rows, columns=["layer", "nmi", "chance", "domain_nmi", "tokens", "token_types"])


def nmi_of_counts(counts_ME: Int64Array) -> Float64Array:
    """I(domain; expert) / H(domain) of joint counts [...,M,E]; NaN where only one domain has tokens."""
    return ratio(mutual_information(counts_ME), entropy(counts_ME.sum(axis=-1)))


def _basis(trace: RoutingTrace) -> str:
    return "scores" if trace.router_logits is None else "logits"


def _probabilities(trace: RoutingTrace, row: int) -> Iterator[Float64Array]:
    """Rows of one layer that sum to 1, in chunks: [t,E] from logits, else [t,K] from scores (0 where no expert)."""
    for start in range(0, trace.num_tokens, _CHUNK_TOKENS):
        part = slice(start, start + _CHUNK_TOKENS)
        if trace.router_logits is None:
            yield _normalised(np.maximum(trace.router_scores[row, part], 0.0), empty=0.0)
            continue
        logits = trace.router_logits[row, part].astype(np.float64)
        if trace.score_function == "sigmoid":
            yield _normalised(special.expit(logits))
        else:
            yield special.softmax(logits, axis=1)


def _normalised(weights: npt.NDArray[np.number[Any]], empty: float = np.nan) -> Float64Array:
    """Divide by the sum along the last axis; `empty` where that is 0."""
    total = np.broadcast_to(weights.sum(axis=-1, keepdims=True, dtype=np.float64), weights.shape)
    result: Float64Array = np.divide(weights, total, out=np.full(weights.shape, empty), where=total > 0)
    return result


def _share_intervals(trace: RoutingTrace, share_LME: Float64Array) -> tuple[Float64Array, Float64Array]:
    """(low, high) of domain_specialization's shares; NaN for a domain with fewer than two documents."""
    parts = blocks(trace)
    low, high = np.full(share_LME.shape, np.nan), np.full(share_LME.shape, np.nan)
    shape = (len(parts.tokens), trace.num_experts)
    for row, indices_TK in enumerate(trace.router_indices):
        counts_NE = grouped_counts(indices_TK, parts.of_token, shape)
        for m in range(len(trace.domains)):
            own = parts.domain_ids == m
            if own.sum() > 1:
                low[row, m], high[row, m] = _wilson(counts_NE[own], parts.tokens[own], share_LME[row, m])
    return low, high


def _wilson(counts_NE: Int64Array, tokens_N: Int64Array, share_E: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Wilson interval of a share over N >= 2 documents, with the effective number of independent tokens."""
    N, total = len(tokens_N), float(tokens_N.sum())
    independent_E = np.clip(share_E * (1 - share_E), 0.0, None) / total
    residual_NE = counts_NE - share_E * tokens_N[:, None]
    between_E = N / (N - 1) * (residual_NE**2).sum(axis=0) / total**2
    # An expert that no document (or every token) chose shows no variance of its own: take the layer's design effect.
    common = float(between_E.sum() / independent_E.sum()) if independent_E.any() else 1.0
    effect_E = np.divide(between_E, independent_E, out=np.full_like(share_E, common), where=independent_E > 0)
    z = float(special.ndtri((1 + CONFIDENCE) / 2))
    t = float(special.stdtrit(N - 1, (1 + CONFIDENCE) / 2))
    n_E = total / np.maximum(effect_E, 1.0) * (z / t) ** 2
    centre_E = (share_E + z**2 / (2 * n_E)) / (1 + z**2 / n_E)
    half_E = z / (1 + z**2 / n_E) * np.sqrt(np.clip(share_E * (1 - share_E), 0.0, None) / n_E + z**2 / (4 * n_E**2))
    return np.minimum(np.clip(centre_E - half_E, 0.0, None), share_E), np.maximum(centre_E + half_E, share_E)
