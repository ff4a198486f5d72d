"""What goes together beyond chance: neighbouring tokens, experts of a layer, experts and tokens, layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from moe_core.routing.baselines import CHANCE, Finding, findings
from moe_core.routing.verdicts.domains import NOTHING_THERE
from moe_core.routing.verdicts.words import layers_of, number, p_value, percent


def persistence_verdict(test: pd.DataFrame) -> str:
    """Do neighbouring tokens keep their expert? From baselines.persistence, all layers or the rows of one."""

    def size(row: pd.Series[Any]) -> str:
        return f"{percent(row['first'])} of neighbours against {percent(row['null_mean'])} in shuffled documents"

    return _verdict(
        test,
        findings.PERSISTENCE,
        size,
        clear="Neighbouring tokens keep the same first expert more often than chance",
        slight="Neighbouring tokens keep the same first expert only slightly more often than chance",
    )


def coactivation_verdict(test: pd.DataFrame, pairs: pd.DataFrame | None = None) -> str:
    """Are some experts chosen together beyond chance? From baselines.coactivation, all layers or the rows of one.

    With `pairs` from baselines.coactivation_pairs the strongest certain pair of these layers is named.
    """

    def size(row: pd.Series[Any]) -> str:
        return (
            f"{percent(row['strength'])} of the pairs are others than chance would choose, against "
            f"{percent(row['null_mean'])} in random choices of the same load"
        )

    text = _verdict(
        test,
        findings.COACTIVATION,
        size,
        clear="Some experts are chosen together more than chance",
        slight="Experts are chosen together only slightly differently from chance",
    )
    if pairs is None or not test["verdict"].isin(findings.COACTIVATION.both).any():
        return text
    certain = pairs[~pairs["uncertain"].astype(bool) & pairs["layer"].isin(test["layer"])]
    together = certain[certain["lift_over_chance"] > 1]
    if together.empty:
        return text
    best = together.iloc[int((together["tokens"] - together["expected"]).argmax())]
    return (
        f"{text} Strongest: experts {int(best['expert_i'])} and {int(best['expert_j'])} of layer {int(best['layer'])}, "
        f"{number(best['lift_over_chance'])} times as often as chance."
    )


def vocabulary_verdict(test: pd.DataFrame) -> str:
    """Do experts specialise in tokens? From baselines.vocabulary, all layers or the rows of one."""
    which = str(test["which"].iloc[0]) if len(test) else "input"
    of_what = {"input": "token", "predicted": "predicted token", "next": "next token"}[which]

    def size(row: pd.Series[Any]) -> str:
        return (
            f"the favourite expert of a {of_what} takes {percent(row['score'])} of its occurrences against "
            f"{percent(row['null_mean'])} by chance"
        )

    return _verdict(
        test,
        findings.VOCABULARY,
        size,
        clear=f"Expert choice specialises by {of_what}",
        slight=f"Expert choice specialises by {of_what} only slightly more than chance",
    )


def flow_verdict(test: pd.DataFrame) -> str:
    """Does the expert of one layer tell about that of the next? From baselines.layer_flow, all or some layers."""

    def size(row: pd.Series[Any]) -> str:
        return f"NMI {number(row['nmi'])} against {number(row['null_mean'])} by chance"

    return _verdict(
        test,
        findings.FLOW,
        size,
        clear="A token's expert in one layer tells about its expert in the next",
        slight="A token's expert in one layer tells about its expert in the next only slightly better than chance",
        place=lambda row: f"layers {int(row['layer'])} to {int(row['next_layer'])}",
    )


def strongest_flow(flow: pd.DataFrame) -> str:
    """Where the largest stream beyond chance goes. Rows of metrics.layer_flow, of one layer or of several."""
    beyond = flow["tokens"] * (1 - 1 / flow["lift"].where(flow["lift"] > 0))
    if not (beyond > 0).any():
        return "No expert's tokens go to any expert of the next layer more often than by chance."
    row = flow.iloc[int(beyond.argmax())]
    return (
        f"Most beyond chance goes from expert {int(row['expert'])} of layer {int(row['layer'])} to expert "
        f"{int(row['next_expert'])} of layer {int(row['next_layer'])}: "
        f"{percent(row['probability'])} of its tokens, {number(row['lift'])} times that expert's share."
    )


def _verdict(
    test: pd.DataFrame,
    finding: Finding,
    size: Callable[[pd.Series[Any]], str],
    *,
    clear: str,
    slight: str,
    place: Callable[[pd.Series[Any]], str] = lambda row: f"layer {int(row['layer'])}",
) -> str:
    """The layer with the largest effect of those found, with its size; or why there is none."""
    if test.empty:
        return "There is nothing to test: the trace has too few MoE layers."
    found = test[test["verdict"].isin(finding.both)]
    if found.empty:
        untestable = test[test["verdict"] != CHANCE]
        if len(untestable) == len(test):
            return f"This {untestable['verdict'].iloc[0]}."
        return NOTHING_THERE
    best = found.iloc[int(found["effect"].argmax())]
    where = f"{place(best)} most, " if len(test) > 1 else ""
    certainty = f"{size(best)} ({p_value(best['p_adjusted'])})"
    others = test[test["verdict"] == CHANCE]
    rest = f"; {layers_of(others)} not distinguishable from chance" if len(others) else ""
    if best["verdict"] == finding.clearly:
        return f"{clear}: {where}{certainty}{rest}."
    return f"{slight}: {where}{certainty}, too little to rely on{rest}."
