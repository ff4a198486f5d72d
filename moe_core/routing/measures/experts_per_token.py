"""How many experts tokens of each class take, where the router's rule or null experts let the number vary.

A class is a domain, which a whole text has, or a label, which each token has. Nulls: labels keep their places and the
choices of every document are turned round; the domains of whole sources are dealt anew. Both keep load, length, source
and runs of equal choice.

Axes: L layers, T tokens, C classes, G groups of sources, P permutations, V types of token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from moe_core.errors import UsageError
from moe_core.routing.measures.against_chance import (
    CANNOT_BE_TESTED,
    Finding,
    Sampled,
    against_null,
    interval_words,
    layers_verdict,
    tested,
)
from moe_core.routing.measures.class_sums import (
    By,
    ClassSums,
    block_sums,
    class_sums,
    dealt_sums,
    mean_with_interval,
    null_mean_of_all,
    numbers_of_experts,
    turned_sums,
)
from moe_core.routing.measures.domains import ONE_DOMAIN, why_untestable
from moe_core.routing.measures.labelled_tokens import LABELS, ONE_LABEL
from moe_core.routing.measures.measure import Bars, Plant, RandomRouting
from moe_core.routing.measures.term import Term
from moe_core.routing.measures.tokens import texts_of, token_types
from moe_core.routing.measures.used import extent_of_test, used
from moe_core.routing.statistics.jackknife import source_groups
from moe_core.routing.statistics.multiple_comparisons import MIN_EXPECTED, SIGNIFICANCE, Pool, adjust
from moe_core.routing.statistics.permutation import check_permutations, whole_and_sample
from moe_core.routing.trace.shares import ratio
from moe_core.routing.trace.trace import AnyRouting, AnyTrace, RoutingTrace
from moe_core.routing.trace.types import Float64Array
from moe_core.words import count_of, number, percent

FINDING = Finding(
    "follows the class of a token clearly more than chance", "follows the class of a token slightly more than chance"
)
CLEAR_EFFECT = 0.02
"""Part of the variance beyond chance from which a class says something useful about the number of experts."""
ALL_ALIKE = f"{CANNOT_BE_TESTED}: every token takes the same number of experts"
MIN_TYPE_TOKENS = 10
"""A token type that occurs less often is not listed."""


def varies(routing: AnyRouting) -> bool:
    """Whether the router gives some tokens fewer experts than others, by its rule or because some are null."""
    return routing.varying_experts or routing.null_experts > 0


def fixed_words(routing: AnyRouting) -> str:
    """What is to be said instead where it does not vary."""
    return f"Every token takes {count_of(routing.top_k, 'expert')} in each layer: this router's number is fixed."


def experts_per_token(trace: AnyTrace, by: By | None = None) -> pd.DataFrame:
    """How many experts that compute the tokens of each class take.

    `by` None = by label where the trace has labels, else by domain. Columns: layer, labelling, class, tokens; experts =
    mean number of experts a token, 0..K, null ones left out; low, high = its 95 % interval over sources (delete-a-group
    jackknife), NaN where there are too few. Tokens without a label are left out. Raises UsageError where the number
    does not vary, TraceError for a trace without labels that was to be told apart by them.
    """
    return _frame(trace, class_sums(trace, _checked(trace, by)))


def experts_per_token_test(
    trace: AnyTrace, permutations: int = 200, seed: int = 0, by: By | None = None
) -> pd.DataFrame:
    """How much of the number of experts a token's class explains, against chance.

    Columns, one row per layer: layer; explained = variance between classes / variance of the number, 0..1 (eta
    squared); null_mean, null_p99, p_value, p_adjusted, effect; estimate = explained without the bias of few tokens
    (jackknife), with its interval low, high; spread = standard deviation of the classes' means over tokens, in experts;
    mean = experts a token; labelling; what `used` says; verdict. Of a large trace the p-value is of a sample where
    tokens are told apart by label. Raises as experts_per_token.
    """
    check_permutations(permutations)
    by = _checked(trace, by)
    found = class_sums(trace, by, seed)
    if by == "label":
        whole, sample = whole_and_sample(trace.by_label(), seed)
        reason = ONE_LABEL
        draws = list(turned_sums(sample, permutations, seed))
        of_sample = (
            None
            if sample is whole
            else Sampled(np.array([draw.explained()[0] for draw in draws]), null_mean_of_all(whole, found, seed))
        )
        extent = used(whole, sample)
    else:
        whole, reason, of_sample = trace, ONE_DOMAIN, None
        draws, extent = list(dealt_sums(trace, permutations, seed)), used(trace)
    null_PL = np.stack([draw.explained() for draw in draws], axis=1)
    untestable = [""] * trace.num_layers
    if (found.tokens.sum(axis=0) > 0).sum() < 2:
        untestable = [reason] * trace.num_layers
    elif by == "domain":
        untestable = [why_untestable(trace, block_sums(trace)[0])] * trace.num_layers
    value_L = found.explained()
    untestable = [why or (ALL_ALIKE if np.isnan(value) else "") for why, value in zip(untestable, value_L, strict=True)]
    return tested(
        {"layer": trace.layers, "explained": value_L},
        null_PL[1:],
        found.estimate(),
        finding=FINDING,
        clear_effect=CLEAR_EFFECT,
        untestable=untestable,
        sampled=of_sample,
        used=extent,
        labelling=found.labelling,
        spread=found.spread(),
        mean=ratio(found.sums.sum(axis=(1, 2)), found.tokens.sum()),
    )


def experts_per_token_classes(
    trace: AnyTrace, permutations: int = 200, seed: int = 0, by: By | None = None
) -> pd.DataFrame:
    """experts_per_token, each class tested: does it take another number than its documents, or other domains, do?

    Further columns: expected = mean number over the draws of the null; p_value, two-sided, by how many standard
    deviations of its own draws the class is from their mean (see Pool), NaN of fewer than 5 tokens; p_adjusted over all
    cells; uncertain = p_adjusted is not SIGNIFICANCE or less; tested_tokens and so on, see used.extent_of_test.
    """
    check_permutations(permutations)
    by = _checked(trace, by)
    found = class_sums(trace, by, seed)
    whole, sample = whole_and_sample(trace.by_label(), seed) if by == "label" else (trace, trace)
    frame = _frame(trace, found).assign(**extent_of_test(whole, sample))
    pool, expected = Pool(), list[Float64Array]()
    untestable = by == "domain" and bool(why_untestable(trace, block_sums(trace)[0]))
    if by == "label" and isinstance(sample, RoutingTrace):
        draws = turned_sums(sample, permutations, seed)
    else:
        draws = dealt_sums(trace, permutations, seed)
    for draw in draws:
        means_PC = ratio(draw.sums, draw.tokens)
        enough_C = (draw.tokens[0] >= MIN_EXPECTED) & ~np.isnan(means_PC).any(axis=0) & (not untestable)
        pool.add(np.nan_to_num(means_PC), enough_C)
        expected.append(np.where(enough_C, means_PC[1:].mean(axis=0), np.nan))
    p_values = pool.p_values()
    adjusted = adjust(p_values)
    frame = frame.assign(
        expected=np.concatenate(expected),
        p_value=p_values,
        p_adjusted=adjusted,
        uncertain=~(adjusted <= SIGNIFICANCE),
    )
    return frame[frame["tokens"] > 0].reset_index(drop=True)


def experts_per_token_of_types(trace: AnyTrace, min_count: int = MIN_TYPE_TOKENS) -> pd.DataFrame:
    """Which tokens skip most: the mean number of experts of each token type, over all layers, the fewest first.

    Columns: token_id, token (its text), tokens, experts (0..K, mean of the layers), low, high (95 % over sources, of
    each type alone: the extremes of many types lie further out by chance). Types that occur fewer than `min_count`
    times are left out. Raises UsageError where the number does not vary.
    """
    _checked(trace, "domain")
    types = token_types(trace, "input", min_count)
    groups, V = source_groups(trace), len(types.ids)
    sums_GV, tokens_GV = np.zeros((groups.groups.count, V)), np.zeros((groups.groups.count, V))
    for part in trace.parts():
        type_T, group_T = types.label(part.token_ids), groups.label(part)
        mean_T = numbers_of_experts(part).mean(axis=0)
        known = type_T < V
        np.add.at(sums_GV, (group_T[known], type_T[known]), mean_T[known])
        np.add.at(tokens_GV, (group_T[known], type_T[known]), 1.0)
    value_V, low_V, high_V = mean_with_interval(groups.groups, sums_GV, tokens_GV, trace.top_k)
    frame = pd.DataFrame(
        {"token_id": types.ids, "token": texts_of(trace, types.ids), "tokens": types.tokens, "experts": value_V,
         "low": low_V, "high": high_V}
    )  # fmt: skip
    return frame.sort_values(["experts", "token_id"], kind="stable").reset_index(drop=True)


def _checked(trace: AnyRouting, by: By | None) -> By:
    if not varies(trace):
        raise UsageError(f"{fixed_words(trace)} Expected a router such as top_p, or null experts")
    return by or ("label" if getattr(trace, "labelling", "") else "domain")


def _frame(trace: AnyTrace, found: ClassSums) -> pd.DataFrame:
    """The columns of experts_per_token, classes without tokens too."""
    parts = []
    for layer, sums_GC in zip(trace.layers, found.sums, strict=True):
        value_C, low_C, high_C = mean_with_interval(found.groups, sums_GC, found.tokens, found.top_k)
        parts.append(
            pd.DataFrame(
                {"layer": layer, "labelling": found.labelling, "class": found.classes,
                 "tokens": found.tokens.sum(axis=0).astype(np.int64), "experts": value_C, "low": low_C, "high": high_C}
            )
        )  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def experts_per_token_verdict(test: pd.DataFrame) -> str:
    """Do classes of tokens take different numbers of experts? From baselines.experts_per_token."""
    what = str(test["labelling"].iloc[0]) if len(test) else "class"

    def size(row: pd.Series[Any]) -> str:
        return (
            f"it explains {interval_words(row, percent)} of how many a token takes, {percent(row['null_mean'])} by "
            f"chance; classes differ by {number(row['spread'])} of {number(row['mean'])} experts (standard deviation)"
        )

    return layers_verdict(
        test,
        FINDING,
        size,
        clear=f"How many experts a token takes follows its {what}",
        slight=f"How many experts a token takes follows its {what} only slightly more than chance",
    )


def most_and_fewest(classes: pd.DataFrame, layer: int) -> str:
    """The classes that surely take most and fewest experts in a layer; "" where none surely differs."""
    own = classes[(classes["layer"] == layer) & ~classes["uncertain"].astype(bool)].sort_values("experts")
    if own.empty:
        return ""
    fewest, most = own.iloc[0], own.iloc[-1]
    said = [f"{row['class']} ({_experts(row)})" for row in (fewest, most)]
    if len(own) == 1:
        return f"Only {said[0]} surely differs."
    return f"Fewest: {said[0]}; most: {said[1]}."


def class_sentence(row: Any) -> str:
    """One row of experts_per_token_classes as a sentence without a full stop."""
    text = f"{row['class']}: {_experts(row)} experts a token, of {count_of(int(row['tokens']), 'token')}"
    if pd.isna(row["expected"]):
        return f"{text}; too little text to test"
    return f"{text}; {number(row['expected'])} by chance" + (": uncertain" if row["uncertain"] else "")


def _experts(row: Any) -> str:
    if pd.isna(row["low"]):
        return number(row["experts"])
    return f"{number(row['experts'])}, 95 % interval {number(row['low'])} to {number(row['high'])}"


TERMS = (
    Term(
        "experts per token",
        "How many experts a token passes in a layer, null experts left out; with a fixed top-k all take K.",
        "used slots of experts that compute / T",
    ),
    Term(
        "explained variance",
        "The part of the differences in a number that is there between classes: eta squared.",
        "sum_c n_c (m_c - m)^2 / sum_t (x_t - m)^2",
        "never 0 on few tokens; hold it against its null",
        "Fisher 1925",
    ),
)


def _bar_sentence(row: Any) -> str:
    return (
        f"Layer {row.layer}: the token's {row.labelling} explains {interval_words(row, percent)} of how many experts "
        f"it takes; as counted {percent(row.explained)}, {against_null(row)}: {row.verdict}."
    )


BARS = Bars(
    figure="experts_per_token_explained",
    title="What the class tells of the number of experts",
    axis="part of the number's variance that the class explains (0 = nothing, 1 = all)",
    sentence=_bar_sentence,
)


def _plant(routing: RandomRouting) -> None:
    """Tokens of label 0 choose the last experts, which calibration takes for null ones, rather than others."""
    chosen_T = routing.token_ids % LABELS == 0
    routing.logits[:, chosen_T, -NULLS:] += routing.strength


NULLS = 2
"""Experts of random routing in calibration that count as null."""
PLANT = Plant(_plant)
