"""Where the tokens of one expert come from and where they go, against what independence of the layers gives."""

from __future__ import annotations

from typing import Literal

import pandas as pd

from moe_core.routing.measures.flow import FEW_EXPECTED, flow_found
from moe_core.words import number, percent

Direction = Literal["from", "to"]
NAMED_STREAMS = 12


def expert_flow(flow: pd.DataFrame, test: pd.DataFrame, layer: int, expert: int, direction: Direction) -> pd.DataFrame:
    """The streams that come from the experts of the layer before, or go to those of the layer after, the largest beyond
    independence first. Frames of metrics.layer_flow and baselines.layer_flow.

    Columns: layer, expert (at the other end); tokens (pairs of slots, see layer_flow); share = tokens / all of this
    expert's in that direction, 0..1, NaN where it has none; expected = the other expert's part of all pairs between the
    two layers, which is the share if the layers have nothing to do with each other; lift = share / expected, NaN where
    nothing is expected; uncertain = fewer than FEW_EXPECTED tokens are expected, or the two layers are not told from
    independent ones (flow_found). No rows at the first or the last layer.
    """
    here, there = ("next_layer", "layer") if direction == "from" else ("layer", "next_layer")
    here_expert, there_expert = ("next_expert", "expert") if direction == "from" else ("expert", "next_expert")
    between = flow[flow[here] == layer]
    own = between[between[here_expert] == expert]
    total = own["tokens"].sum()
    of_all = between.groupby(there_expert)["tokens"].sum() / max(between["tokens"].sum(), 1)
    share = own["tokens"] / total if total else own["tokens"].astype(float) * float("nan")
    expected = own[there_expert].map(of_all).astype(float)
    found = flow_found(test[test[here] == layer])
    frame = pd.DataFrame(
        {
            "layer": own[there],
            "expert": own[there_expert],
            "tokens": own["tokens"],
            "share": share,
            "expected": expected,
            "lift": share / expected.where(expected > 0),
            "uncertain": (expected * total < FEW_EXPECTED) | (not found),
        }
    )
    beyond = frame["tokens"] - frame["expected"] * total
    return frame.loc[beyond.sort_values(ascending=False, kind="stable").index].reset_index(drop=True)


def expert_flow_verdict(frame: pd.DataFrame, direction: Direction) -> str:
    """The stream that goes most beyond independence, or that none surely does. Of expert_flow."""
    words = {
        "from": ("before", "come from", "It gets most beyond independence from"),
        "to": ("after", "go to", "It sends most beyond independence to"),
    }[direction]
    if frame.empty:
        return f"There is no MoE layer {words[0]} this one."
    if frame["share"].isna().all():
        return "No token chose it."
    certain = frame[~frame["uncertain"]]
    if certain.empty:
        return "Not distinguishable from chance, or too few tokens to tell: do not read a way into these bars."
    best = certain.iloc[0]
    if not best["lift"] > 1:
        return f"Its tokens {words[1]} no expert of layer {int(best['layer'])} more often than by independence."
    return (
        f"{words[2]} expert {int(best['expert'])} of layer {int(best['layer'])}: "
        f"{percent(best['share'])} of its tokens, {number(best['lift'])} times the {percent(best['expected'])} that "
        "independence gives."
    )


def strongest_streams(flow: pd.DataFrame, test: pd.DataFrame, count: int = NAMED_STREAMS) -> pd.DataFrame:
    """The `count` streams between single experts that go most beyond independence, of layers whose flow is no chance
    and of which FEW_EXPECTED tokens or more are expected. Columns of metrics.layer_flow."""
    found = set(test["layer"][[flow_found(test.iloc[[place]]) for place in range(len(test))]])
    expected = flow["tokens"] / flow["lift"].where(flow["lift"] > 0)
    beyond = flow["tokens"] - expected
    told = flow[flow["layer"].isin(found) & (expected >= FEW_EXPECTED) & (beyond > 0)]
    return told.loc[beyond[told.index].nlargest(count).index].reset_index(drop=True)
