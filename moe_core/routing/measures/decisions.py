"""How sure the router is of each choice."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import special

from moe_core.routing.measures.term import Term
from moe_core.routing.trace.shares import entropy, normalised, ratio
from moe_core.routing.trace.trace import AnyTrace, RoutingTrace
from moe_core.routing.trace.types import Float32Array, Float64Array, ScoreFunction

_UNDERFLOWN = 1e-290  # sums below have lost digits
_CHUNK_TOKENS = 65_536  # bounds the memory of per-token probabilities


def router_entropy(trace: AnyTrace) -> pd.DataFrame:
    """How undecided the router is about a token, averaged over tokens.

    Columns: layer;
    router_entropy = mean_t H(p_t) / ln E, 0 = certain .. 1 = uniform over all experts;
    confidence = mean_t max p, 1/E..1; margin = mean_t (largest - second largest p), 0..1;
    boundary = mean_t (p_(K) - p_(K+1)), 0..1: how far the last chosen expert is above the first that is not, as p has
    them; NaN at K = E. Where it is small, a little noise changes the choice;
    mutual_information = H(mean_t p_t) - mean_t H(p_t) in nats, 0 = all tokens are routed alike .. ln E: what a token
    tells about its expert;
    basis = "logits": p is over all E experts; "scores": logits were not kept, p is the chosen experts' weights divided
    by their sum, so the entropy is at most ln K / ln E: do not compare it with one from logits; boundary and
    mutual_information are then NaN.
    Tokens without any expert are left out when the basis is scores, tokens whose logits are all -inf when it is logits;
    an expert of logit -inf has probability 0. At E = 1 there is no choice: entropy 0, margin 1.
    """
    E, L = trace.num_experts, trace.num_layers
    sums_L4, tokens_L, shares_LE, basis = np.zeros((L, 4)), np.zeros(L), np.zeros((L, E)), "logits"
    for part in trace.parts():
        basis = _basis_of(part)
        for row in range(L):
            for p in _probabilities_of_layer(part, row):
                some_T = np.einsum("te->t", p) > 0  # over few columns several times faster than sum(axis=1)
                p = p if some_T.all() else p[some_T]
                sums_L4[row] += _sums_over_tokens(p, part.top_k)
                tokens_L[row] += len(p)
                if basis == "logits":
                    shares_LE[row] += p.sum(axis=0)
    mean_L4 = ratio(sums_L4, tokens_L[:, None])
    complete = basis == "logits"
    return pd.DataFrame(
        {
            "layer": trace.layers,
            "router_entropy": mean_L4[:, 0] / np.log(max(E, 2)),
            "confidence": mean_L4[:, 1],
            "margin": mean_L4[:, 2],
            "boundary": mean_L4[:, 3] if complete else np.nan,
            "mutual_information": np.maximum(entropy(shares_LE) - mean_L4[:, 0], 0.0) if complete else np.nan,
            "basis": basis,
        }
    )


def says_how_decided(trace: AnyTrace) -> bool:
    """Does the trace say how decided the router was? Not without logits where all weights are equal, as in recordings
    that kept none, nor where a token has one expert alone. The first part of the trace speaks for all."""
    part = next(iter(trace.parts()))
    if part.router_logits is not None:
        return True
    weights = part.router_scores[part.router_indices >= 0]
    return part.top_k > 1 and bool(weights.size) and not np.allclose(weights, weights[0])


def _sums_over_tokens(p_TE: Float64Array, top_k: int) -> list[float]:
    """Sums over tokens of entropy, largest, lead of the largest, and lead of the K-th largest over the next."""
    E = p_TE.shape[1]
    if E == 2:  # pairs of scores: a partition takes ten times as long
        ordered = np.stack([np.minimum(p_TE[:, 0], p_TE[:, 1]), np.maximum(p_TE[:, 0], p_TE[:, 1])], axis=1)
    else:
        ordered = np.partition(p_TE, sorted({E - 1, max(E - 2, 0), E - top_k, max(E - top_k - 1, 0)}), axis=1)
    first, second = ordered[:, -1], ordered[:, -2] if E > 1 else np.zeros(len(p_TE))
    boundary = (ordered[:, -top_k] - ordered[:, -top_k - 1]).sum() if top_k < E else np.nan
    return [special.entr(p_TE).sum(), first.sum(), (first - second).sum(), boundary]


def token_entropy(trace: RoutingTrace, layer: int) -> Float32Array:
    """[T] router entropy of each token in one layer, H(p_t) / ln E, 0..1; basis and exceptions as in router_entropy."""
    parts = [entropy(p) for p in _probabilities_of_layer(trace, trace.layer_position(layer))]
    normalised: Float32Array = (np.concatenate(parts) / np.log(max(trace.num_experts, 2))).astype(np.float32)
    return normalised


def token_boundary(trace: RoutingTrace, layer: int) -> Float64Array:
    """[T] p_(K) - p_(K+1) of each token in one layer, 0..1, see router_entropy; NaN without logits and at K = E."""
    row, K = trace.layer_position(layer), trace.top_k
    if trace.router_logits is None or trace.num_experts == K:
        return np.full(trace.num_tokens, np.nan)
    places = (trace.num_experts - K - 1, trace.num_experts - K, -1)
    parts = [np.partition(p, places, axis=1) for p in _probabilities_of_layer(trace, row)]
    # A token whose experts are all masked has no probabilities: its row is 0.
    lead = [np.where(p[:, -1] > 0, p[:, places[1]] - p[:, places[0]], np.nan) for p in parts]
    return np.concatenate(lead)


def token_logit_lead(trace: RoutingTrace, layer: int) -> Float64Array:
    """[T] K-th largest logit - the next, >= 0, of each token in one layer: how much noise on the logits it takes to
    change the choice. NaN without logits, at K = E, and where neither expert can be chosen."""
    row, K = trace.layer_position(layer), trace.top_k
    if trace.router_logits is None or trace.num_experts == K:
        return np.full(trace.num_tokens, np.nan)
    places = (trace.num_experts - K - 1, trace.num_experts - K)
    ordered = np.partition(trace.router_logits[row].astype(np.float64), places, axis=1)
    with np.errstate(invalid="ignore"):
        lead_T: Float64Array = ordered[:, places[1]] - ordered[:, places[0]]
    return lead_T


def token_lead(trace: RoutingTrace, layer: int) -> Float64Array:
    """[T] p_(1) - p_(2) of each token in one layer, 0..1, see router_entropy for what p is without logits; NaN for a
    token without two experts to choose between, and where all weights are equal."""
    row = trace.layer_position(layer)
    parts = []
    for p in _probabilities_of_layer(trace, row):
        if p.shape[1] < 2 or not says_how_decided(trace):
            parts.append(np.full(len(p), np.nan))
            continue
        ordered = np.partition(p, (-2, -1), axis=1)
        enough_t = ordered[:, -1] > 0
        if trace.router_logits is None:  # a token with one expert has no second one to lead
            enough_t &= ordered[:, -2] > 0
        parts.append(np.where(enough_t, ordered[:, -1] - ordered[:, -2], np.nan))
    return np.concatenate(parts)


def token_last_weight(trace: RoutingTrace, layer: int) -> Float64Array:
    """[T] the least weight of a chosen expert of each token in one layer; NaN for a token without any. The best expert
    that was not chosen has no more, so that it is the most by which the last choice can have been ahead."""
    row = trace.layer_position(layer)
    weights_TK = np.where(trace.router_indices[row] >= 0, trace.router_scores[row].astype(np.float64), np.inf)
    least_T = weights_TK.min(axis=1)
    return np.where(np.isinf(least_T), np.nan, least_T)


def beside_logits(trace: RoutingTrace, layer: int) -> float:
    """Share of the tokens of one layer, 0..1, whose experts are not those of the largest logits: something beside them
    chose too, such as a balancing bias or noise. NaN without logits, and where tokens have unequally many experts."""
    row = trace.layer_position(layer)
    logits, chosen_TK = trace.router_logits, trace.router_indices[row]
    if logits is None or trace.top_k == trace.num_experts or (chosen_TK < 0).any():
        return float("nan")
    logits_TE = logits[row].astype(np.float64)
    least_T = np.take_along_axis(logits_TE, chosen_TK.astype(np.int64), axis=1).min(axis=1)
    np.put_along_axis(logits_TE, chosen_TK.astype(np.int64), -np.inf, axis=1)
    return float((logits_TE.max(axis=1) > least_T).mean())


def _basis_of(trace: RoutingTrace) -> str:
    return "scores" if trace.router_logits is None else "logits"


def _probabilities_of_layer(trace: RoutingTrace, row: int) -> Iterator[Float64Array]:
    """Rows of one layer that sum to 1, in chunks: [t,E] from logits, else [t,K] from scores (0 where no expert)."""
    for start in range(0, trace.num_tokens, _CHUNK_TOKENS):
        part = slice(start, start + _CHUNK_TOKENS)
        if trace.router_logits is None:
            yield normalised(np.maximum(trace.router_scores[row, part], 0.0), empty=0.0)
            continue
        yield _probabilities(trace.router_logits[row, part].astype(np.float64), trace.score_function)


def _probabilities(logits_TE: Float64Array, score_function: ScoreFunction) -> Float64Array:
    """[T,E], each row sums to 1; 0 for logits of -inf, and a row of zeros where all are."""
    if score_function == "softmax":
        return _softmax(logits_TE)
    sigmoid = score_function == "sigmoid"
    weights = special.expit(logits_TE) if sigmoid else np.sqrt(np.logaddexp(0.0, logits_TE))
    p_TE = normalised(weights, empty=0.0)
    # Of very negative logits all weights underflow; there they are exponentials, of half the logit under the root.
    underflown = np.einsum("te->t", weights) < _UNDERFLOWN
    if underflown.any():
        p_TE[underflown] = _softmax(logits_TE[underflown] * (1.0 if sigmoid else 0.5))
    return p_TE


def _softmax(logits_TE: Float64Array) -> Float64Array:
    largest = logits_TE.max(axis=1, keepdims=True)
    masked: Float64Array = special.softmax(np.where(np.isneginf(largest), 0.0, logits_TE), axis=1)
    return np.where(np.isneginf(largest), 0.0, masked) if np.isneginf(largest).any() else masked


TERMS = (
    Term(
        "router entropy",
        "How undecided the router is about a token: 0 = sure of one expert, 1 = no preference at all.",
        "mean_t H(p_t) / ln E",
        "1 for a router that does not choose",
    ),
    Term("confidence", "The router's probability of its first choice, averaged over tokens.", "mean_t max p", "1/E"),
    Term("margin", "How far the first choice is ahead of the second.", "mean_t (p_(1) - p_(2))", "0 for a tie"),
    Term(
        "boundary margin",
        "How far the last expert chosen is ahead of the first one left out; where it is small, choices flip easily.",
        "mean_t (p_(K) - p_(K+1))",
        "0 for a tie",
    ),
    Term(
        "router information",
        "How much of the router's indecision differs from token to token: 0 = it treats all tokens alike.",
        "H(mean_t p_t) - mean_t H(p_t), in nats",
        "0",
    ),
)
