"""How the work is shared among the experts."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_core.routing.counts import entropy, expert_counts, ratio
from moe_core.routing.trace import RoutingTrace


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
