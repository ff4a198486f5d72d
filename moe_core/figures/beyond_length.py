"""Figures of reading beyond the trained length: loss by position, and routing by position."""

from __future__ import annotations

import altair as alt
import pandas as pd

from moe_core.figures.figure import Figure
from moe_core.figures.layout import AUTOSIZE, WIDTH
from moe_core.figures.palette import NEUTRAL, RUN_COLOURS
from moe_core.routing.measures.beyond_length import LongContext, Mean, reading_verdict, routing_verdict
from moe_core.words import percent

HEIGHT = 340
_DASHES = ((1, 0), (7, 3), (2, 2), (8, 3, 2, 3), (4, 2), (10, 4))
QUANTITIES = {
    "flips": "first choices that changed",
    "entropy": "router entropy, 1 = uniform",
    "busiest": "busiest expert, times even",
}


def loss_by_position_figure(found: LongContext) -> Figure:
    """Where does the whole reading lose against windows of the trained length? A line a scheme, its 95 % interval over
    documents as a bar at each point; the trained length is marked, 0 is as good as windows."""
    records = []
    for read in found.schemes:
        for place in read.places:
            gap = place.above_windows
            records.append(
                {
                    "scheme": read.scheme,
                    "start": place.start,
                    "end": place.end,
                    "position": (place.start + place.end) / 2,
                    "nats": place.nats.value,
                    "value": gap.value,
                    "low": gap.low,
                    "high": gap.high,
                    "sentence": f"{read.scheme}, positions {place.start} to {place.end - 1}: {place.nats.value:.3f} "
                    f"nats, {gap.value:+.3f} against windows (95 % interval {gap.low:+.3f} to {gap.high:+.3f}).",
                }
            )
    frame = pd.DataFrame(records)
    layers = [
        alt.Chart(pd.DataFrame({"value": [0.0]})).mark_rule(color=NEUTRAL, strokeDash=[2, 3]).encode(y="value:Q"),
        *_lines(frame, found, "loss above windows (nats per token)"),
    ]
    return Figure(
        "loss_by_position", "Loss by position", "Can this model read beyond the length it was trained on?",
        reading_verdict(found), _chart(layers, frame, HEIGHT), frame.drop(columns="sentence"),
    )  # fmt: skip


def routing_by_position_figure(found: LongContext, layer: int, quantity: str = "flips") -> Figure:
    """Does the routing of a layer hold beyond the trained length? `quantity`: a key of QUANTITIES; lines and bars as in
    loss_by_position_figure."""
    place_of = found.moe_layers.index(layer)
    title = QUANTITIES[quantity]
    records = []
    for read in found.schemes:
        for place in read.places:
            own = place.layers[place_of]
            means: dict[str, Mean] = {"flips": own.flips, "entropy": own.entropy, "busiest": own.busiest}
            mean = means[quantity]
            written, low, high = (
                percent(max(0.0, value)) if quantity == "flips" else f"{value:.2f}"
                for value in (mean.value, mean.low, mean.high)
            )
            records.append(
                {
                    "scheme": read.scheme,
                    "start": place.start,
                    "end": place.end,
                    "position": (place.start + place.end) / 2,
                    "value": mean.value,
                    "low": mean.low,
                    "high": mean.high,
                    "sentence": f"{read.scheme}, positions {place.start} to {place.end - 1}: {title} {written} "
                    f"(95 % interval {low} to {high}).",
                }
            )
    frame = pd.DataFrame(records)
    return Figure(
        f"{quantity}_by_position_layer_{layer}", f"Routing of layer {layer} by position",
        "Does the routing hold beyond the trained length?", routing_verdict(found),
        _chart(_lines(frame, found, title), frame, HEIGHT), frame.drop(columns="sentence"),
    )  # fmt: skip


def load_by_position_figure(found: LongContext, layer: int, scheme: str) -> Figure:
    """Which experts of a layer take the first choices at each place? Share of first choices, a cell a quarter of the
    trained length."""
    place_of = found.moe_layers.index(layer)
    (read,) = (one for one in found.schemes if one.scheme == scheme)
    frame = pd.DataFrame(
        [
            {
                "start": place.start,
                "end": place.end,
                "expert": expert,
                "share": share,
                "sentence": f"Expert {expert} takes {percent(share)} of the first choices at positions {place.start} "
                f"to {place.end - 1}, {share * len(place.layers[place_of].load):.2f} times its even share.",
            }
            for place in read.places
            for expert, share in enumerate(place.layers[place_of].load)
        ]
    )
    verdict = (
        f"NMI of expert with position, all layers, under {scheme}: {read.position_nmi:.4f}, by chance below "
        f"{read.position_nmi_chance:.4f} in 95 of 100 (p = {read.position_p:.2f})."
    )
    cells = alt.Chart(frame).mark_rect().encode(
        x=alt.X("start:Q", title="position in the text", scale=alt.Scale(nice=False)),
        x2="end:Q",
        y=alt.Y("expert:O", title="expert"),
        color=alt.Color("share:Q", title="share", scale=alt.Scale(scheme="viridis", zero=True),
                        legend=alt.Legend(format=".0%", orient="top")),
        tooltip="sentence:N",
    )  # fmt: skip
    chart = alt.LayerChart(layer=[cells, _mark(found)], data=frame, autosize=AUTOSIZE, width=WIDTH, height=HEIGHT)
    return Figure(
        f"load_by_position_layer_{layer}_{scheme}", f"Load of layer {layer} by position", "Do experts follow position?",
        verdict, chart, frame.drop(columns="sentence"),
    )  # fmt: skip


def _lines(frame: pd.DataFrame, found: LongContext, title: str) -> list[alt.Chart]:
    schemes = [read.scheme for read in found.schemes]
    legend = alt.Legend(title=None, orient="top", columns=3)
    x = alt.X("position:Q", title="position in the text (tokens)", scale=alt.Scale(nice=False, zero=True))
    y = alt.Y("value:Q", title=title, scale=alt.Scale(zero=False))
    colour = alt.Color(
        "scheme:N", scale=alt.Scale(domain=schemes, range=list(RUN_COLOURS[: len(schemes)])), legend=legend
    )
    dash = alt.StrokeDash("scheme:N", scale=alt.Scale(domain=schemes, range=list(_DASHES)), legend=legend)
    base = alt.Chart(frame)
    return [
        _mark(found),
        base.mark_rule(opacity=0.35).encode(x=x, y=alt.Y("low:Q", title=title), y2="high:Q", color=colour),
        base.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour, strokeDash=dash),
        base.mark_point(filled=True, size=30, opacity=1).encode(x=x, y=y, color=colour, tooltip="sentence:N"),
    ]


def _mark(found: LongContext) -> alt.Chart:
    """Where the trained length ends."""
    chart = alt.Chart(pd.DataFrame({"position": [found.trained]})).mark_rule(color=NEUTRAL, strokeWidth=2)
    marked: alt.Chart = chart.encode(x="position:Q")
    return marked


def _chart(layers: list[alt.Chart], frame: pd.DataFrame, height: int) -> alt.LayerChart:
    return alt.LayerChart(layer=layers, data=frame, autosize=AUTOSIZE, width=WIDTH, height=height)
