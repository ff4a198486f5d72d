"""What matters: the loss without an expert, and whether anything observed predicts it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_core.routing.measures.term import Term
from moe_core.routing.statistics.multiple_comparisons import SIGNIFICANCE
from moe_core.routing.trace.types import BoolArray, Float32Array
from moe_core.words import count_of, number, sentence, signed

SMALL_NATS = 0.01
"""Change of loss below which it is of no use to anyone: 1 % of perplexity."""
STRONG_CORRELATION = 0.5
"""Rank correlation from which a measure is called a predictor: a quarter of the variance of the ranks."""

# Names that are not what the column is called with a capital letter.
_NAMES = {"reap": "REAP score", "ean": "Expert activation norm"}


def ablation_verdict(effects: pd.DataFrame, part: str = "expert") -> str:
    """What does the model lose without an expert? From evaluation's ablation_map, all experts or one.

    `part` "head": without an attention head, from evaluation's head_effects.
    """
    total = effects[effects["domain"] == "all"]
    if total.empty:
        return f"No {part} has been switched off yet."
    certain = total[~total["uncertain"].astype(bool)]
    if len(total) > 1 and certain.empty:
        experts = count_of(len(total), part)
        if total["low"].isna().all():
            return f"Whether the loss changes without any one of {experts} cannot be tested on text of one source."
        return f"Not distinguishable from chance: whether the loss changes without any one of {experts} cannot be told."
    best = total.iloc[0] if certain.empty else certain.iloc[int(certain["delta_nats"].abs().argmax())]
    layer, number_ = int(best["layer"]), int(best[part])
    own = effects[(effects["layer"] == layer) & (effects[part] == number_)]
    text = effects_verdict(own, f"without {part} {number_} of layer {layer}")
    if len(total) == 1:
        return text
    matter = int((certain["delta_nats"] >= SMALL_NATS).sum())
    return (
        f"{matter} of {count_of(len(total), part)} surely cost something when switched off, {number(SMALL_NATS)} "
        f"nats or more by estimate. {text}"
    )


def effects_verdict(effects: pd.DataFrame, what: str) -> str:
    """What one change does to the loss: how much, how surely, where most.

    From evaluation's domain_effects, or one expert's rows of ablation_map; `what` says what was done, such as "without
    expert 5 of layer 2".
    """
    total = effects[effects["domain"] == "all"].iloc[0]
    domains = effects[(effects["domain"] != "all") & ~effects["uncertain"].astype(bool)]
    most = domains.iloc[int(domains["delta_nats"].abs().argmax())] if len(domains) else None
    where = "" if most is None else f"; most on {most['domain']} text, {signed(float(most['delta_nats']))}"
    delta, low, high = (float(total[name]) for name in ("delta_nats", "low", "high"))
    if np.isnan(low):
        return sentence(f"{what} the loss changes by {signed(delta)} nats per token; of one source only, so uncertain")
    interval = f"95 % interval {signed(low)} to {signed(high)}"
    if bool(total["uncertain"]):
        return sentence(f"{what} the loss on all text is not distinguishable from what it was ({interval}){where}")
    small = ", too little to matter" if abs(delta) < SMALL_NATS else ""
    change = "rises" if delta > 0 else "falls"
    return sentence(f"{what} the loss {change} by {number(abs(delta))} nats per token ({interval}){small}{where}")


def text_loss_verdict(delta: Float32Array, chosen: BoolArray, *, forced: bool = False, several: bool = False) -> str:
    """What one text loses by a change of one expert, where it meets the prediction itself and where only attention
    carries it.

    `delta` [T] change of each token's loss in nats, NaN where it has none; `chosen` [T] tokens that had chosen the
    expert before; `forced`: it was chosen for all tokens, else it was switched off. A token is foreseen by the one
    before it, so its loss goes with that one's experts.
    """
    scored = np.isfinite(delta)
    before = np.concatenate([[False], chosen[:-1]])
    met = scored & (~before if forced else before)
    parts = []
    if met.any():
        it = ("all of them" if forced else "one of them") if several else "it"
        who = f"had not chosen {it}" if forced else f"had chosen {it}"
        parts.append(f"{signed(float(delta[met].mean()))} for the {int(met.sum()):,} tokens after one that {who}")
    if (others := scored & ~met).any():
        parts.append(f"{signed(float(delta[others].mean()))} for the other {int(others.sum()):,}")
    return f"This text's loss changes by {signed(float(delta[scored].mean()))} nats per token: {', '.join(parts)}."


def importance_verdict(correlations: pd.DataFrame) -> str:
    """Does anything observed predict which expert matters? From evaluation's rank_correlations."""
    known = correlations[correlations["rho"].notna()]
    if known.empty:
        return "Too few experts to tell whether anything observed predicts what matters."
    found = known[known["p_adjusted"] <= SIGNIFICANCE]
    experts = int(known["n"].max())
    if found.empty:
        return (
            f"Not distinguishable from chance: of {count_of(len(known), 'measure')} none predicts which of "
            f"{experts} experts matter."
        )
    best = found.iloc[int(found["rho"].abs().argmax())]
    predicts = "predicts" if abs(best["rho"]) >= STRONG_CORRELATION else "predicts only weakly"
    rest = [str(name) for name in known[~known.index.isin(found.index)]["measure"]]
    others = f"; {', '.join(rest)} not distinguishable from chance" if rest else ""
    name = _NAMES.get(str(best["measure"]), str(best["measure"]).capitalize())
    return (
        f"{name} {predicts} which experts matter: rank correlation {best['rho']:.2f} over "
        f"{experts} experts (95 % interval {best['low']:.2f} to {best['high']:.2f}, 0 by chance){others}."
    )


def heads_beside_experts(heads: pd.DataFrame, experts: pd.DataFrame | None) -> str:
    """How much all depends on single heads and on single experts: the medians and the largest, where both are known.

    Frames of head_effects and ablation_map; empty where the experts were not measured.
    """
    if experts is None or experts.empty:
        return ""
    sizes = [one[one["domain"] == "all"]["delta_nats"] for one in (heads, experts)]
    (head, expert), (most, most_expert) = [
        [signed(float(value)) for value in (sizes[0].quantile(share), sizes[1].quantile(share))] for share in (0.5, 1.0)
    ]
    return (
        f"Half of {count_of(len(sizes[0]), 'head')} change the loss by {head} or less, the most needed by {most}; of "
        f"{count_of(len(sizes[1]), 'expert')} it is {expert} and {most_expert}."
    )


ABLATION_TERMS = (
    Term("ablation", "Switching an expert off to see what the model loses; everything else stays as it is."),
    Term("zero", "Switched off: the expert's output is left out, the token's other experts keep their weights."),
    Term("renormalise", "Switched off: the token's other experts share the weight of the expert that is gone."),
    Term("reroute", "Switched off: the router chooses again, without the expert, by its own rule."),
    Term(
        "force",
        "The expert is put first for every token: its logit is set to the token's largest.",
        "z_e = max z",
        "",
        "2509.09660",
    ),
    Term(
        "causal effect",
        "By how much the loss rises when an expert is switched off; above 0 the expert was of use.",
        "nats per token without it - with it",
        "0",
        "2606.10703",
    ),
    Term(
        "head importance",
        "By how much the loss rises when an attention head is masked, so that it puts nothing into the layer's output.",
        "nats per token without the head - with it",
        "0",
        "1905.10650",
    ),
    Term(
        "KL",
        "How differently the model predicts the next token after a change, in nats; not whether it is worse.",
        "mean_t sum_v p_v ln(p_v / p'_v)",
        "0 = the same predictions",
        "Kullback and Leibler 1951",
    ),
)


IMPORTANCE_TERMS = (
    Term(
        "REAP",
        "How much an expert adds where it is used: its weight times the size of its output, over its tokens.",
        "mean over routed tokens of g_e(x) · ||E_e(x)||",
        "",
        "2510.13999",
    ),
    Term(
        "EAN",
        "Expert activation norm: the size of an expert's output, summed over its tokens.",
        "sum over routed tokens of ||E_e(x)||",
    ),
    Term(
        "CKA",
        "How alike two experts' outputs are on the same tokens, whatever their rotation and size.",
        "||A'B||² / (||A'A|| ||B'B||), columns centred",
        "0 = unrelated, 1 = alike; above 0 by chance for few tokens",
        "1905.00414",
    ),
    Term(
        "gate cosine", "How alike two experts' rows of the router are: what they are chosen for.", "cos(w_i, w_j)", "0"
    ),
    Term("weight cosine", "How alike the weights of two experts are, as they stand.", "cos(W_i, W_j)", "0"),
    Term(
        "rank correlation",
        "Whether experts that are high in one measure are high in another: -1 to 1.",
        "Pearson's correlation of ranks",
        "0",
        "Spearman 1904",
    ),
)
