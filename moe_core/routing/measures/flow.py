"""How tokens travel from the experts of one layer to those of the next."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_core.routing.trace.counts import flow_counts, normalised, ratio
from moe_core.routing.trace.stored import AnyTrace


def layer_flow(trace: AnyTrace) -> pd.DataFrame:
    """Where the tokens of an expert go in the next MoE layer (the cross-layer flow of OLMoE, 2409.02060, section 5).

    Columns: layer, next_layer (consecutive in trace.layers), expert, next_expert;
    tokens = pairs of slots, one of each layer, of the same token that chose the two experts (a token counts K^2 times);
    probability = P(next_expert | expert) = tokens / sum over next experts, 0..1, sums to 1 over next_expert;
    lift = probability / the next expert's own share of the pairs, >= 0; 1 = the next choice does not depend on this
    one. NaN where an expert has no tokens. No rows for a trace of one layer.
    """
    E, L = trace.num_experts, trace.num_layers
    flow_LEE = flow_counts(trace)
    probability_LEE = normalised(flow_LEE)
    share_LE = normalised(flow_LEE.sum(axis=1))
    return pd.DataFrame(
        {
            "layer": np.repeat(np.array(trace.layers[:-1], dtype=np.int64), E * E),
            "next_layer": np.repeat(np.array(trace.layers[1:], dtype=np.int64), E * E),
            "expert": np.tile(np.repeat(np.arange(E), E), L - 1),
            "next_expert": np.tile(np.arange(E), E * (L - 1)),
            "tokens": flow_LEE.reshape(-1),
            "probability": probability_LEE.reshape(-1),
            "lift": ratio(probability_LEE, share_LE[:, None, :]).reshape(-1),
        }
    )
