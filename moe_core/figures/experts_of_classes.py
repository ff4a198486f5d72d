"""The figure of experts per token: how many experts each class of tokens takes in a layer."""

from __future__ import annotations

import altair as alt
import pandas as pd

from moe_core.figures.figure import Figure
from moe_core.figures.layout import DOMAIN_AXIS, bars_height, layered
from moe_core.figures.palette import BAR, HEAT, NEUTRAL
from moe_core.routing.measures.experts_per_token import (
    FINDING,
    class_sentence,
    experts_per_token_verdict,
    most_and_fewest,
)
from moe_core.words import sentence

MOST_CLASSES = 24
"""Rows that can be read."""


def experts_per_token_figure(classes: pd.DataFrame, test: pd.DataFrame, layer: int) -> Figure:
    """Which classes of tokens take more experts than others in one layer? Frames of
    baselines.experts_per_token_classes and baselines.experts_per_token.

    A dot is a class's mean in this layer with its interval, faint where it cannot be told from chance; a tick what its
    documents, or other domains, take; small grey dots are its means in the other layers. Of many classes the
    MOST_CLASSES of most tokens are drawn; the table has all.
    """
    own, row = classes[classes["layer"] == layer], test[test["layer"] == layer]
    what, verdict = str(row["labelling"].iloc[0]), experts_per_token_verdict(row)
    if row["verdict"].isin(FINDING.both).all():
        verdict = f"{verdict} {most_and_fewest(classes, layer)}".strip()
    drawn = own.sort_values("tokens", ascending=False, kind="stable").head(MOST_CLASSES)
    order = [str(name) for name in drawn.sort_values("experts", kind="stable")["class"]]
    data = classes[classes["class"].isin(order)].assign(
        own=lambda frame: frame["layer"] == layer,
        faint=lambda frame: frame["uncertain"].astype(bool),
    )
    data["sentence"] = [sentence(f"layer {line['layer']}: {class_sentence(line)}") for line in data.to_dict("records")]
    left = len(own) - len(order)
    y = alt.Y(
        "class:N", title=f"{what} ({len(order)} of {len(order) + left})" if left else what, sort=order, axis=DOMAIN_AXIS
    )
    title = f"experts a token in layer {layer}; tick: by chance, small: other layers"
    x = alt.X("experts:Q", title=title, scale=alt.Scale(zero=True, nice=True), axis=alt.Axis(tickCount=6))
    base = alt.Chart(data).encode(y=y, tooltip=alt.Tooltip("sentence:N"))
    here, others = base.transform_filter("datum.own"), base.transform_filter("!datum.own")
    layers = [
        here.mark_rule(strokeWidth=3, color=BAR, opacity=0.6, strokeCap="round").encode(
            x=alt.X("low:Q", title=title), x2=alt.X2("high:Q")
        ),
        here.mark_point(size=90, filled=True, color=BAR).encode(
            x=x, opacity=alt.condition("datum.faint", alt.value(0.35), alt.value(1.0))
        ),
        here.mark_tick(thickness=3, opacity=1, size=18, color=HEAT).encode(x=alt.X("expected:Q")),
    ]
    if classes["layer"].nunique() > 1:
        layers.insert(0, others.mark_point(size=22, filled=True, color=NEUTRAL, opacity=0.7).encode(x=x))
    return Figure(
        f"experts_per_token_layer_{layer}", f"Experts per token in layer {layer}",
        "Which kinds of token take more experts than others?", verdict,
        layered(layers, data, bars_height(len(order))), own.reset_index(drop=True),
    )  # fmt: skip
