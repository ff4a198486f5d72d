"""How tokens travel from layer to layer. Null: the next layer's choices turned round in every document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from moe_core.routing.measures.against_chance import (
    Sampled,
    against_null,
    finding_of,
    interval_words,
    layers_verdict,
    tested,
)
from moe_core.routing.measures.measure import Bars, Plant, RandomRouting
from moe_core.routing.measures.term import Term
from moe_core.routing.measures.tokens import TOGETHER
from moe_core.routing.measures.used import used
from moe_core.routing.statistics.information import Estimate, join_estimates, nmi, nmi_estimate
from moe_core.routing.statistics.jackknife import groups_for
from moe_core.routing.statistics.permutation import (
    affordable_rotations,
    check_permutations,
    documents,
    rotated_parts,
    whole_and_sample,
)
from moe_core.routing.trace.counts import flow_counts
from moe_core.routing.trace.kernels import MovedPairs, grouped_joint_counts, slot_columns
from moe_core.routing.trace.shares import normalised, ratio
from moe_core.routing.trace.trace import AnyTrace
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

FEW_EXPECTED = 5.0
"""Streams of which chance expects fewer tokens are not judged (the usual rule for counts, Cochran 1954)."""
NOTHING_ROUTED = "cannot be tested: fewer than two experts in use"


def layer_flow_test(trace: AnyTrace, permutations: int = 200, seed: int = 0) -> pd.DataFrame:
    """metrics.layer_flow against layers moved against each other: does one layer's choice tell about the next one's?

    Within every document the next layer's choices are turned round by a random distance, which keeps what tokens of a
    document and neighbours have in common. Columns, one row per two consecutive layers: layer, next_layer,
    nmi = I(expert; next expert) / H(next expert) over pairs of slots of all tokens, 0..1, as counted; null_mean,
    null_p99, p_value, p_adjusted, effect; estimate = nmi without the bias of few tokens (information.nmi_estimate),
    with its interval low, high; tokens, documents and what else `used` says; verdict. Of a large trace the p-value is
    of a sample of whole documents, all else of all tokens. No rows for a trace of one layer.
    """
    check_permutations(permutations)
    # A token counts with each pair of its slots in every two layers.
    trace, sample = whole_and_sample(trace, seed, (trace.num_layers - 1) * trace.top_k**2)
    texts, rng = documents(sample), np.random.default_rng(seed)
    slots_LKT = sample.router_indices.transpose(0, 2, 1)[:, :, texts.order].astype(np.int64) + 1
    here, after, E = slots_LKT[:-1], slots_LKT[1:], trace.num_experts
    pairs = [MovedPairs(one_KT, other_KT, E) for one_KT, other_KT in zip(here, after, strict=True)]
    of_sample_L = _nmi_of_pairs(pairs, np.arange(len(texts.order)))
    null_PL = np.stack([_nmi_of_pairs(pairs, texts.rotation(rng)) for _ in range(permutations)])
    value_L, estimate = _all_tokens(trace, seed)
    return tested(
        {"layer": trace.layers[:-1], "next_layer": trace.layers[1:], "nmi": value_L},
        null_PL,
        estimate,
        finding=FLOW_FINDING,
        clear_effect=CLEAR_EFFECT,
        untestable=[NOTHING_ROUTED if np.isnan(value) else "" for value in of_sample_L],
        sampled=None if sample is trace else Sampled(of_sample_L, _null_of_all_tokens(trace, seed)),
        used=used(trace, sample),
    )


def _nmi_of_pairs(pairs: Sequence[MovedPairs], place_T: Int64Array) -> Float64Array:
    """[L-1] nmi over pairs of slots; layer by layer, so that the counts stay in the cache."""
    return np.array([nmi(pair.counts(place_T)) for pair in pairs])


def _all_tokens(trace: AnyTrace, seed: int) -> tuple[Float64Array, Estimate]:
    """([L-1] nmi as counted, its estimate) of all tokens, layers together as memory allows."""
    E, pairs = trace.num_experts, range(trace.num_layers - 1)
    sources = groups_for(trace, E * E, seed, TOGETHER)
    G, values, estimates = sources.groups.count, list[float](), list[tuple[float, float, float]]()
    together = max(1, TOGETHER // (G * E * E))
    for start in range(0, len(pairs), together):
        rows = pairs[start : start + together]
        counts_RGEE = np.zeros((len(rows), G, E, E), dtype=np.int64)
        for part in trace.parts():
            groups_T = sources.label(part)
            for counts_GEE, row in zip(counts_RGEE, rows, strict=True):
                one_KT, other_KT = (slot_columns(part.router_indices[layer]) for layer in (row, row + 1))
                counts_GEE += grouped_joint_counts(one_KT, other_KT, groups_T, (G, E))
        values += [float(nmi(counts_GEE.sum(axis=0))) for counts_GEE in counts_RGEE]
        estimates += [nmi_estimate(counts_GEE, sources.groups) for counts_GEE in counts_RGEE]
    return np.array(values), join_estimates(estimates)


def _null_of_all_tokens(trace: AnyTrace, seed: int) -> Float64Array:
    """[L-1] mean nmi over a few rotations of all tokens."""
    E, pairs = trace.num_experts, trace.num_layers - 1
    rotations = affordable_rotations(trace, max(pairs, 1) * trace.top_k**2, pairs * E * E, TOGETHER)
    counts_PLEE = np.zeros((rotations, pairs, E, E), dtype=np.int64)
    for part, texts, places in rotated_parts(trace, rotations, seed):
        for row in range(pairs):
            one_KT, other_KT = (slot_columns(part.router_indices[layer][texts.order]) for layer in (row, row + 1))
            moved = MovedPairs(one_KT, other_KT, E)
            for counts_LEE, place_T in zip(counts_PLEE, places, strict=True):
                counts_LEE[row] += moved.counts(place_T)
    mean_L: Float64Array = nmi(counts_PLEE).mean(axis=0)
    return mean_L


def flow_verdict(test: pd.DataFrame) -> str:
    """Does the expert of one layer tell about that of the next? From baselines.layer_flow, all or some layers."""

    def size(row: pd.Series[Any]) -> str:
        return (
            f"NMI {interval_words(row, number)}; as counted {number(row['nmi'])} against {number(row['null_mean'])} "
            "by chance"
        )

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
    axis="NMI of the experts in one layer and the next (0..1)",
    sentence=lambda row: (
        f"Layers {row.layer} to {row.next_layer}: the expert in one tells {interval_words(row, percent)} of that in "
        f"the next; as counted {percent(row.nmi)}, {against_null(row)}: {row.verdict}."
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
