"""Which experts are chosen together by one token."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_core.routing.trace.counts import pair_counts, ratio
from moe_core.routing.trace.stored import AnyTrace


def coactivation(trace: AnyTrace) -> pd.DataFrame:
    """How often two experts of a layer serve the same token, over all pairs of slots (not only adjacent ranks).

    One row per ordered pair i != j. Columns: layer, expert_i, expert_j;
    tokens = N_ij, tokens that chose both (symmetric);
    probability = N_ij / N_i, 0..1, the part of i's tokens that chose j too (OLMoE, 2409.02060, eq. 6; sums to K - 1
    over j where no slot is unused; even routing (K-1)/(E-1)); NaN for an expert that nobody chose;
    lift = N_ij T / (N_i N_j), >= 0: against experts chosen independently of each other, T tokens in all. A token's K
    experts differ, so even routing has lift (K-1) E / ((E-1) K) < 1, and none at all at K = 1: hold it against
    baselines.coactivation.
    """
    E = trace.num_experts
    pairs_LEE = pair_counts(trace)
    counts_LE = np.diagonal(pairs_LEE, axis1=1, axis2=2)
    rows, columns = np.nonzero(~np.eye(E, dtype=bool))
    tokens_LP = pairs_LEE[:, rows, columns]
    own_LP, other_LP = counts_LE[:, rows], counts_LE[:, columns]
    return pd.DataFrame(
        {
            "layer": np.repeat(trace.layers, len(rows)),
            "expert_i": np.tile(rows, trace.num_layers),
            "expert_j": np.tile(columns, trace.num_layers),
            "tokens": tokens_LP.reshape(-1),
            "probability": ratio(tokens_LP, own_LP).reshape(-1),
            "lift": ratio(tokens_LP * float(trace.num_tokens), own_LP * other_LP.astype(np.float64)).reshape(-1),
        }
    )
