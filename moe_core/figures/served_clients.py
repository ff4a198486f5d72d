"""The figure of compare-serving: what models write under load, dense beside mixture."""

from __future__ import annotations

import altair as alt
import pandas as pd

from moe_core.experiments.serving_result import ServingResult, serving_verdict
from moe_core.figures.figure import Figure
from moe_core.figures.layout import AXIS_ROOM, bars_height, layered
from moe_core.figures.palette import HEAT, LAYER_SHADES
from moe_core.words import count_of, fixed

_KINDS = {"dense": "dense", "moe": "mixture (MoE)"}


def serving_figure(result: ServingResult) -> Figure:
    """Which writes more? Tokens a second of all clients together: the median of the rounds, and their middle 80 %."""
    frame = pd.DataFrame(
        [
            {
                "load": f"{model.size}, {count_of(load.clients, 'client')}",
                "kind": _KINDS[model.kind],
                "weights": model.weights,
                "tokens_per_second": load.tokens_per_second.median,
                "low": load.tokens_per_second.low,
                "high": load.tokens_per_second.high,
                "first_token_milliseconds": 1000 * load.first_token_seconds.median,
                "sentence": f"{model.name} ({model.weights}), {count_of(load.clients, 'client')}: "
                f"{fixed(load.tokens_per_second.median, 0)} tokens/s, the first one after "
                f"{fixed(1000 * load.first_token_seconds.median, 0)} ms.",
            }
            for model in result.models
            for load in model.loads
        ]
    )
    kinds = list(dict.fromkeys(frame["kind"]))
    colours = {_KINDS["moe"]: HEAT, _KINDS["dense"]: LAYER_SHADES[0]}
    base = alt.Chart(frame).encode(
        y=alt.Y("load:N", title=None, sort=None, axis=alt.Axis(labelLimit=160)),
        yOffset=alt.YOffset("kind:N", sort=kinds),
        color=alt.Color(
            "kind:N",
            title=None,
            scale=alt.Scale(domain=kinds, range=[colours[kind] for kind in kinds]),
            legend=alt.Legend(orient="top", labelLimit=300, columns=1, symbolOpacity=1),
        ),
        tooltip=alt.Tooltip("sentence:N"),
    )
    title = "tokens a second of all clients together"
    layers = [
        base.mark_rule(strokeWidth=2).encode(
            x=alt.X("low:Q", title=title, scale=alt.Scale(zero=True)), x2=alt.X2("high:Q")
        ),
        base.mark_circle(size=70, opacity=1).encode(x=alt.X("tokens_per_second:Q", title=title)),
    ]
    height = bars_height(2 * frame["load"].nunique()) + AXIS_ROOM
    return Figure(
        "serving", "Tokens a second under load", "Does a mixture serve faster than a dense model of equal active size?",
        serving_verdict(result), layered(layers, frame, height), frame.drop(columns="sentence"),
    )  # fmt: skip
