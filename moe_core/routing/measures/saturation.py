"""When does routing become what it is in the end?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from moe_core.errors import TraceError
from moe_core.routing.measures.comparison import check_same_experts, check_same_tokens
from moe_core.routing.measures.persistence import first_choice, shared_experts
from moe_core.routing.trace.counts import expert_counts, ratio
from moe_core.routing.trace.trace import RoutingTrace


def saturation(traces: Mapping[int, RoutingTrace]) -> pd.DataFrame:
    """How much of the last step's routing is there at each earlier one (OLMoE, 2409.02060, eq. 5).

    `traces`: of the same tokens in the same order, by training step. Columns: step, layer;
    first = share of tokens whose first choice (largest score) is already that of the last step, 0..1;
    top_k = share of the last step's choices that the token already makes, 0..1, mean |S(step) & S(last)| / K where all
    slots are used; both are 1 at the last step and NaN for a layer that routes nothing then;
    chance_top_k = top_k of independent choices with the two steps' loads, sum_e P(e at step) N_e(last) / sum N(last),
    K/E for even load.
    Raises TraceError without a trace, or where tokens, layers or experts differ.
    """
    if not traces:
        raise TraceError("there are no traces; expected one or more, by training step")
    steps = sorted(traces)
    last = traces[steps[-1]]
    final_LE = expert_counts(last)
    firsts = [first_choice(last, row) for row in range(last.num_layers)]
    rows = []
    for step in steps:
        trace = traces[step]
        names = f"the traces of step {step} and of the last step, {steps[-1]},"
        check_same_tokens(trace, last, names)
        check_same_experts(trace, last, names)
        share_LE = expert_counts(trace) / trace.num_tokens
        for row, layer in enumerate(last.layers):
            had_one = firsts[row] >= 0
            shared = shared_experts(last.router_indices[row], trace.router_indices[row]).sum()
            total = final_LE[row].sum()
            rows.append(
                {
                    "step": step,
                    "layer": layer,
                    "first": float(ratio((first_choice(trace, row) == firsts[row])[had_one].sum(), had_one.sum())),
                    "top_k": float(ratio(shared, total)),
                    "chance_top_k": float(ratio((share_LE[row] * final_LE[row]).sum(), total)),
                }
            )
    return pd.DataFrame(rows).astype({"step": np.int64})
