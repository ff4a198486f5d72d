"""Two routings of the same tokens: what differs, and which expert of one is which of the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from moe_core.errors import TraceError
from moe_core.routing.measures.decisions import token_boundary
from moe_core.routing.measures.persistence import first_choice, shared_experts
from moe_core.routing.measures.term import Term
from moe_core.routing.statistics.bootstrap import source_blocks, totals_ratio_interval
from moe_core.routing.trace.counts import expert_counts
from moe_core.routing.trace.kernels import add_grouped_counts
from moe_core.routing.trace.shares import entropy, normalised, ratio
from moe_core.routing.trace.trace import AnyRouting, RoutingTrace
from moe_core.routing.trace.types import BoolArray, Float64Array, Int64Array
from moe_core.words import number, percent


def routing_diff(a: RoutingTrace, b: RoutingTrace, seed: int = 0) -> pd.DataFrame:
    """How differently two traces route the same tokens: another step, precision, engine, or after an intervention.

    Columns: layer; tokens (T);
    flip_rate = P(S_a != S_b), 0..1, tokens whose set of experts differs (as R3, 2510.11370);
    first_flip_rate = P(first choices differ), 0..1; jaccard = mean |S_a & S_b| / |S_a | S_b|, 0 = no expert in common
    .. 1 = the same (two tokens without any expert are the same);
    jsd = Jensen-Shannon divergence of the two loads in nats, 0..ln 2, small where flips cancel out;
    margin_flipped, margin_kept = mean boundary margin p_(K) - p_(K+1) of `a` where the set differs and where not,
    0..1: noise flips choices of small margin, a real change others too; NaN without logits or such tokens;
    low, high = 95 % bootstrap interval of flip_rate over sources, 0..1; NaN with fewer than two sources.
    An expert is told by its number: for separately trained models match_experts first.
    Raises TraceError where tokens, layers or experts differ.
    """
    check_same_tokens(a, b)
    check_same_experts(a, b)
    flipped_LT = np.stack([flipped_tokens(a, b, row) for row in range(a.num_layers)])
    low_L, high_L = _flip_rate_intervals(a, flipped_LT, np.random.default_rng(seed))
    q_LE, r_LE = normalised(expert_counts(a)), normalised(expert_counts(b))
    jsd_L = entropy((q_LE + r_LE) / 2) - (entropy(q_LE) + entropy(r_LE)) / 2
    rows = []
    for row, (layer, flipped_T) in enumerate(zip(a.layers, flipped_LT, strict=True)):
        margin_T = token_boundary(a, layer)
        rows.append(
            {
                "layer": layer,
                "tokens": a.num_tokens,
                "flip_rate": float(flipped_T.mean()),
                "first_flip_rate": float((first_choice(a, row) != first_choice(b, row)).mean()),
                "jaccard": float(_jaccard_of_tokens(a, b, row).mean()),
                "jsd": max(float(jsd_L[row]), 0.0),
                "margin_flipped": float(ratio(margin_T[flipped_T].sum(), flipped_T.sum())),
                "margin_kept": float(ratio(margin_T[~flipped_T].sum(), (~flipped_T).sum())),
                "low": low_L[row],
                "high": high_L[row],
            }
        )
    return pd.DataFrame(rows)


def match_experts(a: RoutingTrace, b: RoutingTrace) -> pd.DataFrame:
    """Which expert of `b` does the work of which expert of `a`, told by the tokens they share.

    Columns: layer, expert_a, expert_b, each expert once per layer (of the side with more, some are left over);
    overlap = Jaccard index of the tokens that chose the one and the other, 0 = none in common .. 1 = the same; NaN
    where neither has any. Unrelated experts of even load have about s / (2 - s), s = K/E.
    The matching is the one of largest total overlap (Hungarian method, Kuhn 1955). The numbers of the experts of two
    separately trained models mean nothing; this gives them names by what they do.
    Raises TraceError where tokens or layers differ.
    """
    from scipy.optimize import linear_sum_assignment

    check_same_tokens(a, b)
    check_same_layers(a, b)
    frames, own_LE, other_LF = [], expert_counts(a), expert_counts(b)
    for row, layer in enumerate(a.layers):
        both_EF = _tokens_of_both(a, b, row)
        overlap_EF = ratio(both_EF, own_LE[row, :, None] + other_LF[row] - both_EF)
        chosen = linear_sum_assignment(np.nan_to_num(overlap_EF), maximize=True)
        frames.append(
            pd.DataFrame({"layer": layer, "expert_a": chosen[0], "expert_b": chosen[1], "overlap": overlap_EF[chosen]})
        )
    return pd.concat(frames, ignore_index=True)


def rename_experts(b: RoutingTrace, matches: pd.DataFrame) -> RoutingTrace:
    """`b` with its experts numbered as those of `a` that they match. Frame of match_experts(a, b), as many experts in
    both."""
    names_LE = np.tile(np.arange(-1, b.num_experts, dtype=np.int16), (b.num_layers, 1))  # the first is -1, unused
    for layer, own, name in matches[["layer", "expert_b", "expert_a"]].to_numpy(int):
        names_LE[b.layer_position(int(layer)), own + 1] = name
    indices = np.stack([names_LE[row][b.router_indices[row] + 1] for row in range(b.num_layers)])
    logits = b.router_logits
    if logits is not None:
        logits = np.stack([logits[row][:, np.argsort(names_LE[row, 1:])] for row in range(b.num_layers)])
    return replace(b, router_indices=indices, router_logits=logits)


def token_difference(a: RoutingTrace, b: RoutingTrace) -> str:
    """Why two traces are not of the same tokens in the same order, in words; "" if they are."""
    if a.num_tokens != b.num_tokens:
        return f"{a.num_tokens:,} and {b.num_tokens:,} tokens"
    for name in ("token_ids", "positions"):
        if len(places := np.flatnonzero(getattr(a, name) != getattr(b, name))):
            what = "tokens" if name == "token_ids" else "positions in their documents"
            return f"different {what}, first at token {places[0]:,}"
    if a.vocabulary != b.vocabulary:
        for token_id in np.unique(a.token_ids).tolist():
            texts = a.vocabulary.get(token_id), b.vocabulary.get(token_id)
            if None not in texts and texts[0] != texts[1]:
                return f"different tokenizers: token {token_id} is {texts[0]!r} in one and {texts[1]!r} in the other"
    return ""


def check_same_tokens(a: RoutingTrace, b: RoutingTrace, names: str = "the two traces") -> None:
    """Raises TraceError unless both are of the same tokens in the same order."""
    if difference := token_difference(a, b):
        raise TraceError(f"{names} have {difference}; expected traces of the same text with the same tokenizer")


def check_same_layers(a: AnyRouting, b: AnyRouting, names: str = "the two traces") -> None:
    """Raises TraceError unless both have the same layers."""
    if a.layers != b.layers:
        raise TraceError(f"{names} have layers {a.layers} and {b.layers}; expected the same layers in both")


def check_same_experts(a: AnyRouting, b: AnyRouting, names: str = "the two traces") -> None:
    """Raises TraceError unless both have the same layers and as many experts."""
    check_same_layers(a, b, names)
    if a.num_experts != b.num_experts:
        raise TraceError(
            f"{names} have {a.num_experts} and {b.num_experts} experts; expected as many in both, or use match_experts"
        )


def flipped_tokens(a: RoutingTrace, b: RoutingTrace, row: int) -> BoolArray:
    """[T] has the token another set of experts?"""
    one_TK, other_TK = a.router_indices[row], b.router_indices[row]
    shared_T = shared_experts(one_TK, other_TK)
    flipped_T: BoolArray = (shared_T < (one_TK >= 0).sum(axis=1)) | (shared_T < (other_TK >= 0).sum(axis=1))
    return flipped_T


def _jaccard_of_tokens(a: RoutingTrace, b: RoutingTrace, row: int) -> Float64Array:
    """[T] experts in common / experts in either; 1 where there are none."""
    one_TK, other_TK = a.router_indices[row], b.router_indices[row]
    shared_T = shared_experts(one_TK, other_TK)
    either_T = (one_TK >= 0).sum(axis=1) + (other_TK >= 0).sum(axis=1) - shared_T
    jaccard_T: Float64Array = np.where(either_T > 0, shared_T / np.maximum(either_T, 1), 1.0)
    return jaccard_T


def _tokens_of_both(a: RoutingTrace, b: RoutingTrace, row: int) -> Int64Array:
    """[E,F] tokens that chose expert e in `a` and f in `b`."""
    both_EF = np.zeros((a.num_experts, b.num_experts), dtype=np.int64)
    for own_T in a.router_indices[row].T:
        add_grouped_counts(both_EF[None], b.router_indices[row : row + 1], own_T)
    return both_EF


def _flip_rate_intervals(
    a: RoutingTrace, flipped_LT: BoolArray, rng: np.random.Generator
) -> tuple[Float64Array, Float64Array]:
    """(low, high) [L] of the flip rates."""
    block_T, N = source_blocks(a.source_ids, rng)
    flipped_NL = np.stack([np.bincount(block_T, flipped_T, minlength=N) for flipped_T in flipped_LT], axis=1)
    tokens_NL = np.repeat(np.bincount(block_T, minlength=N)[:, None], len(flipped_LT), axis=1)
    return totals_ratio_interval(flipped_NL, tokens_NL, rng)


def diff_verdict(diff: pd.DataFrame) -> str:
    """How differently do two traces route the same tokens? From metrics.routing_diff, all layers or the rows of one."""
    tokens = int(diff["tokens"].max())
    if not (diff["flip_rate"] > 0).any():
        return f"The same: not one of {tokens:,} tokens chooses other experts in any layer."
    most = diff.iloc[int(diff["flip_rate"].argmax())]
    where = f"layer {int(most['layer'])} most, " if len(diff) > 1 else ""
    interval = "" if pd.isna(most["low"]) else f" (95 % interval {percent(most['low'])} to {percent(most['high'])})"
    text = (
        f"Different: {where}{percent(most['flip_rate'])} of {tokens:,} tokens choose other experts{interval}, "
        f"{percent(most['first_flip_rate'])} another first one"
    )
    if pd.notna(most["margin_flipped"]) and pd.notna(most["margin_kept"]):
        text += (
            f"; the router's margin was {number(most['margin_flipped'])} where the choice changed, "
            f"{number(most['margin_kept'])} where it stayed"
        )
    return f"{text}."


DIFF_TERMS = (
    Term(
        "flip rate",
        "The part of the tokens that choose another set of experts in the second trace.",
        "P(S_t ≠ S'_t)",
        "0 when the routing is the same",
        "2510.11370",
    ),
    Term(
        "Jaccard",
        "How much two sets of experts have in common.",
        "|S ∩ S'| / |S ∪ S'|",
        "1 = the same, 0 = none in common",
        "Jaccard 1901",
    ),
)


MATCH_TERMS = (
    Term(
        "matched experts",
        "Experts of two models paired so that they share as many tokens as possible; their numbers mean nothing.",
        "largest total Jaccard of token sets (Hungarian method)",
        "",
        "Kuhn 1955",
    ),
)
