"""How tokens travel from layer to layer. Null: the next layer's choices turned round in every document."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from moe_core.routing.measures.against_chance import against_null, finding_of, layers_verdict, tested
from moe_core.routing.measures.measure import Bars, Plant, RandomRouting
from moe_core.routing.measures.term import Term
from moe_core.routing.statistics.bootstrap import RESAMPLES, Units, units
from moe_core.routing.statistics.permutation import Documents, check_permutations, documents, sampled
from moe_core.routing.trace.counts import blocks, entropy, flow_counts, mutual_information, normalised, ratio
from moe_core.routing.trace.trace import AnyTrace, RoutingTrace
from moe_core.routing.trace.types import Float64Array, Int64Array
from moe_core.words import number, percent


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


FLOW_FINDING = finding_of("knows the expert of the layer before", "better")
# Excess NMI over chance, as for domains. Measured on the demo run's probe: 0.004-0.007 in the untrained model, where
# the residual stream alone connects the layers, 0.05-0.08 in the trained one.
CLEAR_EFFECT = 0.02

NOTHING_ROUTED = "cannot be tested: fewer than two experts in use"


def layer_flow_test(trace: AnyTrace, permutations: int = 200, seed: int = 0) -> pd.DataFrame:
    """metrics.layer_flow against layers moved against each other: does one layer's choice tell about the next one's?

    Within every document the next layer's choices are turned round by a random distance, which keeps what tokens of a
    document and neighbours have in common. Columns, one row per two consecutive layers: layer, next_layer,
    nmi = I(expert; next expert) / H(next expert) over pairs of slots, 0..1; null_mean, null_p99, p_value, p_adjusted,
    effect, low, high, tokens, verdict as in baselines.persistence. No rows for a trace of one layer.
    """
    check_permutations(permutations)
    trace = sampled(trace, seed)
    texts, rng = documents(trace), np.random.default_rng(seed)
    slots_LKT = trace.router_indices.transpose(0, 2, 1)[:, :, texts.order].astype(np.int64) + 1
    here, after, E = slots_LKT[:-1], slots_LKT[1:], trace.num_experts + 1
    value_L = _nmi_of_pairs(_pair_counts(here, after, E))
    null_PL = np.stack(
        [_nmi_of_pairs(_pair_counts(here, after[:, :, texts.rotation(rng)], E)) for _ in range(permutations)]
    )
    drawn = units(blocks(trace), seed)
    resampled_RL = _resampled_nmi(trace, texts, slots_LKT, drawn, seed)
    return tested(
        {"layer": trace.layers[:-1], "next_layer": trace.layers[1:], "nmi": value_L},
        null_PL,
        drawn.interval(value_L, resampled_RL),
        finding=FLOW_FINDING,
        clear_effect=CLEAR_EFFECT,
        tokens=trace.num_tokens,
        untestable=[NOTHING_ROUTED if np.isnan(value) else "" for value in value_L],
    )


def _pair_counts(one_LKT: Int64Array, other_LKT: Int64Array, E: int) -> Int64Array:
    """[L,E,E] pairs of slots by their experts, 1..E-1; 0 = unused, left out by _nmi_of_pairs."""
    L = len(one_LKT)
    rows_LKT = one_LKT * E + np.arange(L)[:, None, None] * (E * E)
    keys = rows_LKT[:, :, None] + other_LKT[:, None]
    return np.bincount(keys.reshape(-1), minlength=L * E * E).reshape(L, E, E)


def _nmi_of_pairs(counts_EE: Int64Array | Float64Array) -> Float64Array:
    used = counts_EE[..., 1:, 1:]
    if not len(used):  # a trace of one layer has no next one
        return np.empty(0)
    return ratio(mutual_information(used), entropy(used.sum(axis=-2)))


def _resampled_nmi(
    trace: RoutingTrace, texts: Documents, slots_LKT: Int64Array, drawn: Units, seed: int
) -> Float64Array:
    """[R,L-1] nmi of sources drawn again."""
    E, U = trace.num_experts + 1, drawn.count
    unit_T = drawn.of_block[blocks(trace).of_token[texts.order]]
    weights_RU = drawn.weights(RESAMPLES, np.random.default_rng([seed, 1]))
    columns = []
    for one_KT, other_KT in pairwise(slots_LKT):
        key_KKT = (unit_T * E + one_KT)[:, None] * E + other_KT[None]
        counts_UX = np.bincount(key_KKT.reshape(-1), minlength=U * E * E).reshape(U, E * E)
        columns.append(_nmi_of_pairs((weights_RU @ counts_UX).reshape(-1, E, E)))
    return np.stack(columns, axis=1) if columns else np.empty((RESAMPLES, 0))


def flow_verdict(test: pd.DataFrame) -> str:
    """Does the expert of one layer tell about that of the next? From baselines.layer_flow, all or some layers."""

    def size(row: pd.Series[Any]) -> str:
        return f"NMI {number(row['nmi'])} against {number(row['null_mean'])} by chance"

    return layers_verdict(
        test,
        FLOW_FINDING,
        size,
        clear="A token's expert in one layer tells about its expert in the next",
        slight="A token's expert in one layer tells about its expert in the next only slightly better than chance",
        place=lambda row: f"layers {int(row['layer'])} to {int(row['next_layer'])}",
    )


def flow_found(test: pd.DataFrame) -> bool:
    """Does a layer's choice tell about the next one's at all? From baselines.layer_flow, all or some layers."""
    return bool(test["verdict"].isin(FLOW_FINDING.both).any())


def strongest_flow(flow: pd.DataFrame) -> str:
    """Where the largest stream beyond chance goes. Rows of metrics.layer_flow, of one layer or of several.

    Only to be said where flow_found: of many streams of chance the largest is the luckiest one.
    """
    beyond = flow["tokens"] * (1 - 1 / flow["lift"].where(flow["lift"] > 0))
    if not (beyond > 0).any():
        return "No expert's tokens go to any expert of the next layer more often than by chance."
    row = flow.iloc[int(beyond.argmax())]
    return (
        f"Most beyond chance goes from expert {int(row['expert'])} of layer {int(row['layer'])} to expert "
        f"{int(row['next_expert'])} of layer {int(row['next_layer'])}: "
        f"{percent(row['probability'])} of its tokens, {number(row['lift'])} times that expert's share."
    )


TERMS = (
    Term(
        "cross-layer flow",
        "Where the tokens of an expert go in the next MoE layer.",
        "P(expert of layer l + 1 | expert of layer l)",
        "the next expert's own share",
        "2409.02060, section 5",
    ),
)


BARS = Bars(
    figure="flow",
    title="Paths through the layers",
    question="Does the expert of one layer tell the expert of the next?",
    axis="NMI of the experts in one layer and the next (0..1)",
    sentence=lambda row: (
        f"Layers {row.layer} to {row.next_layer}: the expert in one tells {percent(row.nmi)} of that in the next, "
        f"{against_null(row)}: {row.verdict}."
    ),
    row_title="from MoE layer",
)


def _plant_flow(routing: RandomRouting) -> None:
    """A layer prefers the expert after the first one of the layer before."""
    L, T, E = routing.logits.shape
    for layer in range(1, L):
        preferred = (routing.logits[layer - 1].argmax(axis=-1) + 1) % E
        routing.logits[layer, np.arange(T), preferred] += routing.strength


PLANT = Plant(_plant_flow)
