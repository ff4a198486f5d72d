"""How sure the router is of each choice."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import special

from moe_core.routing.counts import entropy, normalised, ratio
from moe_core.routing.trace import RoutingTrace
from moe_core.routing.types import Float32Array, Float64Array

_CHUNK_TOKENS = 65_536  # bounds the memory of per-token probabilities


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


def _basis(trace: RoutingTrace) -> str:
    return "scores" if trace.router_logits is None else "logits"


def _probabilities(trace: RoutingTrace, row: int) -> Iterator[Float64Array]:
    """Rows of one layer that sum to 1, in chunks: [t,E] from logits, else [t,K] from scores (0 where no expert)."""
    for start in range(0, trace.num_tokens, _CHUNK_TOKENS):
        part = slice(start, start + _CHUNK_TOKENS)
        if trace.router_logits is None:
            yield normalised(np.maximum(trace.router_scores[row, part], 0.0), empty=0.0)
            continue
        logits = trace.router_logits[row, part].astype(np.float64)
        if trace.score_function == "sigmoid":
            yield normalised(special.expit(logits))
        else:
            yield special.softmax(logits, axis=1)
