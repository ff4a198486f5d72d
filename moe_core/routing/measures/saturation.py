"""When does routing become what it is in the end?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from moe_core.errors import TraceError
from moe_core.routing.measures.comparison import check_same_experts, check_same_tokens
from moe_core.routing.measures.persistence import first_choice, shared_experts
from moe_core.routing.measures.term import Term
from moe_core.routing.trace.counts import expert_counts
from moe_core.routing.trace.shares import ratio
from moe_core.routing.trace.trace import RoutingTrace
from moe_core.words import layers_named, percent

SETTLED = 0.8
"""Part of the way from chance to identity from which routing counts as settled: its experts can be given names."""


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


def saturation_verdict(saturation: pd.DataFrame) -> str:
    """Since when is the routing what it is? From metrics.saturation, all layers or the rows of one."""
    frame = saturation.assign(
        done=(saturation["top_k"] - saturation["chance_top_k"]) / (1 - saturation["chance_top_k"]).clip(lower=1e-9)
    )
    steps = sorted(int(step) for step in frame["step"].unique())
    if len(steps) < 2:
        return "One snapshot only: when the routing settled cannot be told."
    last = steps[-1]
    settled: dict[int, int] = {}
    for layer in frame["layer"].unique():
        ordered = frame[frame["layer"] == layer].sort_values("step")
        unsettled = ordered[ordered["done"] < SETTLED]["step"]
        after = [step for step in ordered["step"] if unsettled.empty or step > unsettled.max()]
        settled[int(layer)] = int(after[0])
    slowest = max(settled, key=lambda layer: settled[layer])
    start = frame[frame["step"] == steps[0]]
    begin = (
        f"at step {steps[0]:,} a token had {percent(start['top_k'].mean())} of its final experts "
        f"({percent(start['chance_top_k'].mean())} by chance)"
    )
    if settled[slowest] == last:
        late = frame[frame["layer"].isin([layer for layer, step in settled.items() if step == last])]
        return f"Still changing at the last snapshot, step {last:,}, in {layers_named(late['layer'])}; {begin}."
    where = f", layer {slowest} last" if len(set(settled.values())) > 1 else ""
    return (
        f"Settled from step {settled[slowest]:,} of {last:,}{where}: from there on {percent(SETTLED)} of the way from "
        f"chance to the final choice is made; {begin}."
    )


TERMS = (
    Term(
        "saturation",
        "How many of its final experts a token already had at an earlier step of training.",
        "mean_t |S_t(step) ∩ S_t(last)| / K",
        "1 at the last step; two independent choices of the same loads share some by chance",
        "2409.02060, eq. 5",
    ),
)
