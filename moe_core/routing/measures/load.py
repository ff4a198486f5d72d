"""How the work is shared among the experts."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from moe_core.errors import UsageError
from moe_core.routing.measures.term import Term
from moe_core.routing.statistics.clusters import Clusters, clusters, share_bounds, share_low
from moe_core.routing.trace.counts import expert_counts
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.routing.trace.shares import entropy, ratio
from moe_core.routing.trace.trace import AnyRouting, AnyTrace
from moe_core.routing.trace.types import Float64Array, Int64Array
from moe_core.words import number

TOP_SHARE = 10
"""top_mass is what the busiest 1 of so many experts carry, rounded up."""
NAMED = 3
"""So many experts are listed by name."""
DEAD_SHARE = 0.25
"""Part of its even share that an expert without any token surely stays below before it is called dead. At a quarter an
expert still learns from a quarter of the tokens meant for it, which a rare kind of text may well be; below that it is
idle whatever the text. Zero cannot be shown: no number of tokens rules out that the next one chooses the expert."""


def expert_load(trace: AnyRouting) -> pd.DataFrame:
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


def load_bounds(trace: AnyRouting) -> pd.DataFrame:
    """Where the load of every expert really is, in times its even share: which of thousands is surely too much?

    Columns: layer, expert, tokens (assignments); lift = c_e / mean c of the layer, >= 0, 1 = even, NaN where the layer
    routes nothing; lift_low, lift_high_of_all = its 95 % interval for all layers and experts at once, as what stands
    out is picked from all; lift_high = its upper bound by itself (see clusters.Bounds): anywhere where nothing says how
    sure it is; varies_by = what tells how sure it is, as in load_balance.
    """
    found = clusters(trace)
    counts_LE, E = found.counts.sum(axis=1), trace.num_experts
    bounds = share_bounds(found)
    chosen_L = counts_LE.sum(axis=1) / found.total
    even_L1 = (np.where(chosen_L > 0, chosen_L, trace.top_k) / E)[:, None]
    return pd.DataFrame(
        {
            "layer": np.repeat(trace.layers, E),
            "expert": np.tile(np.arange(E), trace.num_layers),
            "tokens": counts_LE.reshape(-1),
            "lift": ratio(counts_LE, counts_LE.mean(axis=1, keepdims=True)).reshape(-1),
            "lift_low": (bounds.low / even_L1).reshape(-1),
            "lift_high": (bounds.high / even_L1).reshape(-1),
            "lift_high_of_all": (bounds.high_of_all / even_L1).reshape(-1),
            "varies_by": found.varies_by,
        }
    )


def extremes(load: pd.DataFrame) -> str:
    """The busiest experts of all layers and those never chosen, by name, as counted; frame of metrics.expert_load."""
    lift = load["share"] * load.groupby("layer")["expert"].transform("size")
    busiest = load.assign(lift=lift).nlargest(NAMED, "lift", keep="first")
    names = [
        f"expert {expert} of layer {layer} ({number(lift)} ×)"
        for layer, expert, lift in zip(busiest["layer"], busiest["expert"], busiest["lift"], strict=True)
    ]
    text = f"Busiest, in times their even share: {', '.join(names)}." if names else "Nothing was routed."
    unused = load[(load["tokens"] == 0) & load["share"].notna()]
    if len(unused):
        first = unused.head(NAMED)
        named = [f"{expert} of layer {layer}" for layer, expert in zip(first["layer"], first["expert"], strict=True)]
        more = f" and {len(unused) - NAMED:,} more" if len(unused) > NAMED else ""
        text += f" Never chosen here: expert{'s' if len(unused) > 1 else ''} {', '.join(named)}{more}."
    return text


def load_balance(trace: AnyRouting) -> pd.DataFrame:
    """How even the load is, one row per layer.

    Columns: layer; tokens (T);
    load_imbalance = max c / mean c, 1..E, 1 = even; max_violation = that - 1 (MaxVio, 2408.15664);
    min_violation = (mean c - min c) / mean c, 0 = even .. 1 = an expert is dead;
    cv = std(c) / mean(c), >= 0, 0 = even (1701.06538);
    load_low, load_high = 95 % interval of load_imbalance: the largest lower and the largest upper bound of an expert's
    load (statistics.clusters; lower ones hold for all layers at once), since the observed largest of many experts is
    above the true one by chance alone; NaN for a layer that routes nothing;
    dead_experts = experts without any assignment, 0..E, on little text by chance too; surely_dead = those of them whose
    load is surely below DEAD_SHARE of the even one (the rule of three on effective tokens);
    utilisation = the part of the experts that has any, 0..1;
    oversubscribed = the part of the experts with more than the mean, 0..1;
    top_mass = the share of all assignments that the ceil(E/10) busiest experts carry, 0..1; even = ceil(E/10) / E;
    effective_experts = exp(H(f)), 1..E: as many equally loaded experts would have this load entropy;
    gini = sum_i (2i - E - 1) c_(i) / (E sum c), 0 = even .. (E-1)/E = all on one;
    experts_per_token = assignments / T, 0..K, of experts that compute: without RoutingTrace.null_experts, which
    count as experts in all other columns;
    dropped_fraction = unused slots / (T K), 0..1 (capacity overflow or skipped), NaN where the rule leaves slots unused
    itself (RoutingTrace.varying_experts) and a dropped one cannot be told from them; dropped_low = its lower bound;
    sources = how many the text is of, or steps where `varies_by` says so; effective_tokens = as many independent tokens
    would tell as much, 0..T, NaN of text too little to say;
    varies_by = what tells how sure the load is: "source", "step" (of counts that do not tell sources apart), or ""
    where nothing does; unit = "token" or "choice", see RoutingCounts.
    """
    found = clusters(trace)
    counts_LE = found.counts.sum(axis=1).astype(np.float64)
    E = trace.num_experts
    total_L, mean_L = counts_LE.sum(axis=1), counts_LE.mean(axis=1)
    weights_E = 2.0 * np.arange(1, E + 1) - E - 1
    imbalance_L = ratio(counts_LE.max(axis=1), mean_L)
    sorted_LE, busiest = np.sort(counts_LE, axis=1), -(-E // TOP_SHARE)
    return pd.DataFrame(
        {
            "layer": trace.layers,
            "tokens": trace.num_tokens,
            "load_imbalance": imbalance_L,
            **_certainty(found, trace.top_k),
            "max_violation": imbalance_L - 1.0,
            "min_violation": 1.0 - ratio(counts_LE.min(axis=1), mean_L),
            "cv": ratio(counts_LE.std(axis=1), mean_L),
            "dead_experts": (counts_LE == 0).sum(axis=1),
            "utilisation": (counts_LE > 0).mean(axis=1),
            "oversubscribed": (counts_LE > mean_L[:, None]).mean(axis=1),
            "top_mass": ratio(sorted_LE[:, E - busiest :].sum(axis=1), total_L),
            "effective_experts": np.exp(entropy(counts_LE)),
            "gini": ratio(sorted_LE @ weights_E, E * total_L),
            "experts_per_token": counts_LE[:, : E - trace.null_experts].sum(axis=1) / trace.num_tokens,
            "dropped_fraction": math.nan if trace.varying_experts else 1.0 - total_L / (trace.num_tokens * trace.top_k),
            "dropped_low": math.nan if trace.varying_experts else _dropped_low(found, trace.top_k),
            "varies_by": found.varies_by,
            "unit": trace.unit if isinstance(trace, RoutingCounts) else "token",
        }
    )


def _certainty(found: Clusters, top_k: int) -> dict[str, Float64Array | Int64Array | int]:
    """The columns of load_balance that say how much a text of this size tells."""
    counts_LE, E = found.counts.sum(axis=1), found.counts.shape[2]
    bounds = share_bounds(found)
    chosen_L = counts_LE.sum(axis=1) / found.total
    even_L = np.where(chosen_L > 0, chosen_L, top_k) / E
    known_L = np.where(chosen_L > 0, 1.0, np.nan)  # a layer that routes nothing has no imbalance
    return {
        "load_low": known_L * np.maximum((bounds.low / even_L[:, None]).max(axis=1), 1.0),
        "load_high": known_L * (bounds.high / even_L[:, None]).max(axis=1),
        "surely_dead": ((counts_LE == 0) & (bounds.high_of_all / even_L[:, None] < DEAD_SHARE)).sum(axis=1),
        "sources": found.sources,
        "effective_tokens": bounds.effective_tokens,
    }


def _dropped_low(found: Clusters, top_k: int) -> Float64Array:
    """[L] lower bound of the part of the slots that are dropped."""
    return share_low(found, np.clip(found.tokens - found.counts.sum(axis=2) / top_k, 0.0, None))


def load_by_step(counts: RoutingCounts) -> pd.DataFrame:
    """The share of every expert at every step of counts that have several.

    Columns: step, layer, expert, tokens (assignments), share (of the layer's assignments at that step, 0..1, NaN where
    nothing was routed).
    """
    counts_SLE = counts.tokens_per_expert.sum(axis=2)
    S, L, E = counts_SLE.shape
    return pd.DataFrame(
        {
            "step": np.repeat(counts.steps, L * E),
            "layer": np.tile(np.repeat(counts.layers, E), S),
            "expert": np.tile(np.arange(E), S * L),
            "tokens": counts_SLE.reshape(-1),
            "share": ratio(counts_SLE, counts_SLE.sum(axis=2, keepdims=True)).reshape(-1),
        }
    )


def dropped_by_position(trace: AnyTrace, bins: int = 16) -> pd.DataFrame:
    """Whether late tokens lose their slots more often, as they do under a capacity limit (OpenMoE, 2402.01739).

    Positions are cut into at most `bins` ranges of equal width (the last may be narrower).
    Columns: layer, position_low, position_high (places in the document, both included), slots (tokens there times K),
    dropped = unused slots; dropped_fraction = dropped / slots, 0..1, NaN where no document is that long. Raises
    UsageError where the rule leaves slots unused itself (RoutingTrace.varying_experts).
    """
    if trace.varying_experts:
        raise UsageError(
            "this router gives tokens different numbers of experts, so that a dropped slot cannot be told from an "
            "unused one; see experts_per_token of load_balance"
        )
    if bins < 1:
        raise UsageError(f"bins is {bins}; expected 1 or more, e.g. 16")
    tokens_P, dropped_LP = np.zeros(0, dtype=np.int64), np.zeros((trace.num_layers, 0), dtype=np.int64)
    for part in trace.parts():
        longest = int(part.positions.max()) + 1
        tokens_P = _padded_counts(tokens_P, longest)
        dropped_LP = _padded_counts(dropped_LP, longest)
        tokens_P[:longest] += np.bincount(part.positions)
        for dropped_P, indices_TK in zip(dropped_LP, part.router_indices, strict=True):
            for slot in range(trace.top_k):
                dropped_P[:longest] += np.bincount(part.positions[indices_TK[:, slot] < 0], minlength=longest)
    width = -(-len(tokens_P) // bins)
    lows = np.arange(0, len(tokens_P), width)
    slots_B = np.add.reduceat(tokens_P, lows) * trace.top_k
    dropped_LB = np.add.reduceat(dropped_LP, lows, axis=1)
    return pd.DataFrame(
        {
            "layer": np.repeat(trace.layers, len(lows)),
            "position_low": np.tile(lows, trace.num_layers),
            "position_high": np.tile(np.minimum(lows + width, len(tokens_P)) - 1, trace.num_layers),
            "slots": np.tile(slots_B, trace.num_layers),
            "dropped": dropped_LB.reshape(-1),
            "dropped_fraction": ratio(dropped_LB, slots_B).reshape(-1),
        }
    )


def _padded_counts(counts: Int64Array, size: int) -> Int64Array:
    """`counts` [...,P] with at least `size` places, the new ones 0."""
    missing = max(size - counts.shape[-1], 0)
    return np.pad(counts, [*[(0, 0)] * (counts.ndim - 1), (0, missing)])


EXPERT_LOAD_TERMS = (
    Term(
        "expert load",
        "The part of a layer's assignments that went to an expert.",
        "f_e = c_e / sum c",
        "1/E when even",
        "2101.03961, eq. 5",
    ),
)


LOAD_BALANCE_TERMS = (
    Term(
        "load imbalance",
        "How many times the average load the busiest expert of a layer has.",
        "max c / mean c",
        "1 when even, E/K when all tokens go to the same K experts",
        "2408.15664",
    ),
    Term(
        "MaxVio",
        "By what part the busiest expert exceeds the average load: load imbalance minus 1.",
        "(max c - mean c) / mean c",
        "0 when even",
        "2408.15664",
    ),
    Term("CV", "Coefficient of variation of the load over experts.", "std c / mean c", "0 when even", "1701.06538"),
    Term(
        "Gini",
        "Inequality of the load over experts, as used for incomes.",
        "sum_i (2i - E - 1) c_(i) / (E sum c)",
        "0 when even, (E-1)/E when one expert has all",
        "Gini 1912",
    ),
    Term(
        "effective experts",
        "As many equally busy experts would have a load as uneven as this one.",
        "exp(H(f))",
        "E when even, 1 when one expert has all",
    ),
    Term(
        "MinVio",
        "By what part the least busy expert falls short of the average load.",
        "(mean c - min c) / mean c",
        "0 when even, 1 with a dead expert",
        "2408.15664",
    ),
    Term("utilisation", "The part of a layer's experts that got any token.", "#{c_e > 0} / E", "1 wanted"),
    Term("oversubscribed", "The part of a layer's experts with more than the average load.", "#{c_e > mean c} / E"),
    Term(
        "top mass",
        "The part of a layer's assignments that its busiest tenth of experts has.",
        "sum of the ceil(E/10) largest f_e",
        "ceil(E/10) / E when even",
    ),
    Term(
        "dead expert",
        "An expert that got no token, of so many that its load is surely below a quarter of its even share.",
        "c_e = 0 and upper bound of f_e below 1/(4E)",
        "0 wanted; an expert not seen in little text need not be dead",
        "rule of three on effective tokens; Rao and Scott 1981",
    ),
)


DROPPED_TERMS = (
    Term(
        "dropped tokens",
        "Slots left empty because the chosen expert was full, not because the router's rule asked for fewer experts.",
        "unused slots / (T K)",
        "0 without a capacity limit",
        "2101.03961, section 2.2",
    ),
)
