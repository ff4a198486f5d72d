"""When did each expert become what it is? Its tokens at every snapshot of training, held against its last ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from moe_core.errors import TraceError
from moe_core.routing.measures.comparison import check_same_experts, check_same_tokens
from moe_core.routing.measures.term import Term
from moe_core.routing.trace.shares import ratio
from moe_core.routing.trace.trace import RoutingTrace
from moe_core.routing.trace.types import BoolArray

FORMED = 0.5
"""An expert is what it is once it keeps half of its last tokens, beyond those that its load alone would bring."""


def formation(traces: Mapping[int, RoutingTrace]) -> pd.DataFrame:
    """How much of what an expert takes at the last step it took at each earlier one; traces of the same tokens by step.

    Columns: step, layer, expert, tokens (that chose it at this step), kept (share 0..1 of the last step's tokens that
    chose it at this step too; NaN for an expert without tokens in the end), chance (tokens / T: what an expert with
    this load keeps of any tokens), agreement (kept beyond chance, (kept - chance) / (1 - chance): 1 at the last step,
    0 = no better than chance, negative = worse; NaN where chance is 1). One expert's share of the saturation of OLMoE
    (2409.02060, eq. 5), corrected for chance as Cohen's kappa is (Cohen 1960).
    Raises TraceError without a trace, or when tokens, layers or experts differ.
    """
    if not traces:
        raise TraceError("there are no snapshots; expected one trace or more, by training step")
    steps = sorted(traces)
    last = traces[steps[-1]]
    final_LTE = _chosen_experts(last)
    frames = []
    for step in steps:
        trace = traces[step]
        names = f"the traces of step {step} and of the last, {steps[-1]},"
        check_same_tokens(trace, last, names)
        check_same_experts(trace, last, names)
        chosen_LTE = _chosen_experts(trace)
        tokens_LE = chosen_LTE.sum(axis=1)
        kept_LE = ratio((chosen_LTE & final_LTE).sum(axis=1), final_LTE.sum(axis=1))
        chance_LE = tokens_LE / trace.num_tokens
        L, E = tokens_LE.shape
        frames.append(
            pd.DataFrame(
                {
                    "step": step,
                    "layer": np.repeat(trace.layers, E),
                    "expert": np.tile(np.arange(E), L),
                    "tokens": tokens_LE.reshape(-1),
                    "kept": kept_LE.reshape(-1),
                    "chance": chance_LE.reshape(-1),
                    "agreement": ratio(kept_LE - chance_LE, 1 - chance_LE).reshape(-1),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def formed_at(formation: pd.DataFrame) -> pd.DataFrame:
    """When each expert became what it is: the first step from which on its agreement stays at FORMED or above.

    `formation` is the frame of `formation`. Columns: layer, expert, step (float; NaN for an expert without tokens in
    the end), tokens (at the last step). The last step agrees with itself, so an expert that keeps changing until the
    end has the last step here.
    """
    ordered = formation.sort_values(["layer", "expert", "step"], kind="stable")
    below = ordered[ordered["agreement"] < FORMED].groupby(["layer", "expert"])["step"].max()
    last = ordered.groupby(["layer", "expert"]).last()
    steps = np.sort(formation["step"].unique())
    before = below.reindex(last.index)
    # The step after the last one below the limit; the first step where none was below.
    place = np.searchsorted(steps, before.fillna(-1).to_numpy(), side="right")
    formed = np.where(last["kept"].isna(), np.nan, steps[np.minimum(place, len(steps) - 1)])
    return last.assign(step=formed)[["step", "tokens"]].reset_index()


def _chosen_experts(trace: RoutingTrace) -> BoolArray:
    """[L,T,E] did the token choose the expert?"""
    L, T, _ = trace.router_indices.shape
    # A spare column takes the unused slots (-1), so that they need no mask.
    chosen: BoolArray = np.zeros((L, T, trace.num_experts + 1), dtype=np.bool_)
    np.put_along_axis(chosen, trace.router_indices.astype(np.int64), True, axis=2)
    return chosen[:, :, :-1]


TERMS = (
    Term(
        "formation",
        "How much of what an expert takes in the end it took at an earlier step, beyond what its load alone brings.",
        "(kept - chance) / (1 - chance), chance = its tokens / T; formed from 1/2 on, for good",
        "0 as by chance, 1 at the last step",
        "after 2409.02060, eq. 5, and Cohen 1960",
    ),
)
