"""Figures of the vocabulary: which tokens belong to one expert."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from moe_core.errors import UsageError
from moe_core.figures.figure import Figure
from moe_core.figures.labels import rows
from moe_core.figures.layout import bars_height, layered
from moe_core.figures.palette import HEAT, expert_colour
from moe_core.figures.tokens import visible
from moe_core.routing.measures.vocabulary import vocabulary_verdict
from moe_core.routing.statistics.intervals import wilson_of_shares
from moe_core.words import number, percent

MAX_TOKENS = 20
"""Token types drawn: those that most surely belong to one expert."""
MAX_TOKEN_CHARACTERS = 24
_WORDS = {"input": "token", "predicted": "predicted token", "next": "next token"}


def vocabulary_figure(vocabulary: pd.DataFrame, test: pd.DataFrame, layer: int) -> Figure:
    """Which tokens belong to one expert in a layer? Frames of metrics.vocabulary_specialization and
    baselines.vocabulary.

    The MAX_TOKENS types with the highest lower end of the 95 % interval (Wilson) of their share, ordered by expert;
    the tick is the share of all tokens that this expert takes.
    """
    frame = vocabulary[(vocabulary["layer"] == layer) & (vocabulary["share"] > 0)].reset_index(drop=True)
    if frame.empty:
        raise UsageError(
            f"layer {layer} has no token that occurs often enough; expected one of "
            f"{sorted({int(value) for value in vocabulary['layer']})}; lower min_count or trace more text"
        )
    what = _WORDS[str(test["which"].iloc[0])] if "which" in test and len(test) else "token"
    surely, _ = wilson_of_shares(frame["share"].to_numpy(np.float64), frame["tokens"].to_numpy(np.float64))
    top = frame.assign(surely=surely).sort_values("surely", ascending=False, kind="stable").head(MAX_TOKENS)
    top = top.sort_values("expert", kind="stable")
    data = top.assign(
        name=_distinct_names(top),
        colour=[expert_colour(int(expert)) for expert in top["expert"]],
        chance=top["share"] / top["lift"],
        label=[f"expert {row.expert}, {percent(row.share)}" for row in rows(top)],
        sentence=[
            f"Expert {row.expert} takes {percent(row.share)} of the {row.tokens:,} times the {what} "
            f"“{token_name(row.text)}” occurs, {number(row.lift)} times its usual share."
            for row in rows(top)
        ],
    )
    base = alt.Chart(data).encode(
        y=alt.Y("name:N", title=what, sort=list(data["name"]), axis=alt.Axis(labelLimit=200)),
        tooltip=alt.Tooltip("sentence:N"),
    )
    x = alt.X(
        "share:Q",
        title="part of its occurrences that one expert takes; tick: the expert's usual share",
        axis=alt.Axis(format=".0%", values=[0, 0.25, 0.5, 0.75, 1]),
        scale=alt.Scale(domain=[0, 1.25], nice=False),  # room for the label of a bar that reaches 1
    )
    bars = base.mark_bar(height=alt.RelativeBandSize(0.62)).encode(x=x, color=alt.Color("colour:N", scale=None))
    ticks = base.mark_tick(thickness=3, size=25, opacity=1, color=HEAT).encode(x=alt.X("chance:Q"))
    labels = base.mark_text(align="left", dx=5, fontSize=11).encode(x=alt.X("share:Q"), text=alt.Text("label:N"))
    chart = layered([bars, ticks, labels], data.drop(columns=["text"]), bars_height(len(data)))
    return Figure(
        f"vocabulary_layer_{layer}", f"Tokens of one expert in layer {layer}",
        f"Which {what}s belong to one expert?", vocabulary_verdict(test[test["layer"] == layer]), chart, frame,
    )  # fmt: skip


def token_name(text: str) -> str:
    """A token as a label of one line: white space visible, at most MAX_TOKEN_CHARACTERS characters."""
    shown = visible(text)
    if shown == text:  # not white space alone
        shown = "␣" * (len(text) - len(text.lstrip(" "))) + text.strip(" ") + "␣" * (len(text) - len(text.rstrip(" ")))
    return shown if len(shown) <= MAX_TOKEN_CHARACTERS else shown[: MAX_TOKEN_CHARACTERS - 1] + "…"


def _distinct_names(frame: pd.DataFrame) -> list[str]:
    """Labels of the rows; where two tokens look alike, each gets its number in the vocabulary."""
    names = [token_name(text) for text in frame["text"]]
    twice = pd.Series(names).duplicated(keep=False)
    return [
        f"{name} #{token_id}" if double else name
        for name, token_id, double in zip(names, frame["token_id"], twice, strict=True)
    ]
