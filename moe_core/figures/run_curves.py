"""The curves of one training or of several in one figure: a colour for each run, a dash for each split.

What a chart draws moves with its data alone: its specification is the same at every reading of a live run, so that a
page that is drawn again keeps the chart where it is, with its zoom.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import altair as alt
import numpy as np
import pandas as pd

from moe_core.figures.figure import Figure
from moe_core.figures.labels import rows, spread
from moe_core.figures.layout import AUTOSIZE, AXIS_ROOM, WIDTH, room_for
from moe_core.figures.palette import NEUTRAL, SPLIT_COLOURS, run_colours
from moe_core.runs.curves import LEARNING_RATE, LOAD_IMBALANCE, LOSS, SPEED, TRAIN, VALID_CODE, RunCurves
from moe_core.runs.evaluation import Evaluation
from moe_core.words import duration, number, short_count

Along = Literal["step", "tokens", "time"]
ALONG: tuple[Along, ...] = get_args(Along)
POINTS, CURVE_POINTS = 900, 200
"""Of all curves of a figure together, and of one: more take longer to draw than they tell."""
ZOOM = "zoom"
"""The selection that the wheel, with shift held down, and dragging move."""
_NAME_CHARACTERS = 18


@dataclass(frozen=True)
class _Look:
    """How the curve of a split is drawn."""

    dash: tuple[int, int]
    width: float
    opacity: float
    dots: float
    """Their opacity; those that are not seen still answer when the mouse is over them."""


_LOOKS = {
    TRAIN: _Look((1, 0), 1.2, 0.55, 0.01),
    "validation": _Look((6, 3), 1.6, 0.9, 1.0),
    "unseen": _Look((1, 0), 2.6, 1.0, 1.0),
}
_LOOKS_OF_ONE = {"": _Look((1, 0), 2.0, 1.0, 1.0), TRAIN: _Look((1, 0), 1.6, 1.0, 0.01)}
_SPLITS = {TRAIN: "training text", "validation": "validation", "unseen": "unseen text"}
_HEIGHT, _LOSS_HEIGHT = 200, 320


@dataclass(frozen=True)
class Quantity:
    """How a quantity is drawn."""

    title: str
    axis: str
    """With the unit."""
    term: str | None = None
    """Of the glossary."""
    even: float | None = None
    """A value to hold it against, a dashed line."""
    even_name: str = ""
    from_zero: bool = True
    spikes: bool = False
    """Whether the least and the most of what a point stands for are shown."""


DRAWN: dict[str, Quantity] = {
    LOSS: Quantity("Loss", "loss (nats per token)", "loss", from_zero=False),
    LEARNING_RATE: Quantity("Learning rate", "rate of AdamW"),
    "gradient_norm": Quantity("Gradient norm", "norm before clipping", spikes=True),
    "load_balancing_loss": Quantity(
        "Load-balancing loss", "mean over layers", "load-balancing loss", 1.0, "even", from_zero=False
    ),
    "router_z_loss": Quantity("Router z-loss", "mean over layers", "router z-loss", from_zero=False),
    SPEED: Quantity("Tokens a second", "tokens a second", spikes=True),
    LOAD_IMBALANCE: Quantity(
        "Busiest expert", "times the mean load", "load imbalance", 1.0, "even", from_zero=False
    ),
    "dead_experts": Quantity("Dead experts", "experts, worst layer", "dead expert"),
    "dropped_fraction": Quantity("Dropped choices", "share of choices", "capacity factor"),
    VALID_CODE: Quantity("Valid code", "share valid so far"),
}  # fmt: skip


def loss_of_runs_figure(runs: Sequence[RunCurves], along: Along, verdict: str) -> Figure | None:
    """The loss of every split of every run against guessing by token frequency; None where no run has any."""
    return _figure(runs, LOSS, along, verdict)


def loss_of_run_figure(run: RunCurves, scored: Evaluation | None = None) -> Figure | None:
    """Does the model learn? The loss of every split by step, in its table all points of it; None where none is known.

    `scored` are the figures of the whole held-out text, once there are any: the verdict is then of these, the curves
    are of a part of it.
    """
    found = loss_of_runs_figure([run], "step", _loss_words(run, scored))
    question = "Does the model learn, also for unseen text?"
    points = run.curve(LOSS).rename(columns={"split": "series", "value": "nats"})[["step", "series", "nats"]]
    return None if found is None else replace(found, name="loss", question=question, frame=points)


def _loss_words(run: RunCurves, scored: Evaluation | None) -> str:
    if scored is not None and scored.unseen.nats_per_token is not None:
        whole, guess = scored.unseen.nats_per_token, scored.baselines.unigram_nats
        return (
            f"Loss on all unseen text is {whole:.2f} nats per token, {guess - whole:.2f} below guessing by token "
            "frequency; lower is better. The curves are of a part of that text."
        )
    losses, unigram = run.curve(LOSS), run.unigram_nats
    if run.is_watched and len(losses):  # someone else's loop scores no text of ours
        return (
            f"Loss on the text that it is trained on is {losses['value'].iloc[-1]:.2f} nats per token; lower is better."
        )
    unseen = run.curve(LOSS, "unseen")["value"]
    if unseen.empty:
        return "The first evaluation on held-out text is still to come."
    last = unseen.iloc[-1]
    gain = "" if unigram is None else f", {unigram - last:.2f} below guessing by token frequency"
    return f"Loss on unseen text is {last:.2f} nats per token{gain}; lower is better."


def quantity_figure(runs: Sequence[RunCurves], quantity: str, along: Along) -> Figure | None:
    """One quantity of every run that has it; None where none has. Raises KeyError for one that is not in DRAWN."""
    return _figure(runs, quantity, along, None)


def _figure(runs: Sequence[RunCurves], quantity: str, along: Along, verdict: str | None) -> Figure | None:
    drawn = DRAWN[quantity]
    table = curve_table(runs, quantity, along)
    if table.empty:
        return None
    by_split = quantity == LOSS and len(runs) == 1
    table["line"] = table["split"] if by_split else table["run"]
    ends = _ends(table)
    if verdict is None:
        at_end = ", ".join(f"{row.line} {number(row.value)}" for row in rows(ends))
        verdict = f"At the end of each curve: {at_end}."
    chart = _chart(runs, table, ends, quantity, along)
    title = f"{drawn.title} by {'training step' if along == 'step' else along}"
    return Figure(f"{quantity}_of_runs", title, f"How does the {drawn.title.lower()} go?", verdict, chart, table)


def curve_table(runs: Sequence[RunCurves], quantity: str, along: Along) -> pd.DataFrame:
    """What is drawn of a quantity: run, split, x, step, tokens, seconds, value, low, high and sentence.

    Neighbouring records of a long curve are one point, their mean, at the last of them; low and high are the least and
    the most of them. A point whose place along the axis is not known is left out.
    """
    column = "seconds" if along == "time" else along
    curves = [
        points.assign(run=run.name)
        for run in runs
        for _, points in run.curve(quantity).dropna(subset=[column]).groupby("split", sort=False)
    ]
    most = min(CURVE_POINTS, max(2, POINTS // max(len(curves), 1)))
    thinned = [_thinned(curve, most) for curve in curves]
    columns = ["run", "split", "step", "tokens", "seconds", "value", "low", "high", "records"]
    table = pd.concat(thinned, ignore_index=True) if thinned else pd.DataFrame(columns=columns)
    table["x"] = table[column].astype(float) / (_seconds_a_unit(table)[0] if along == "time" else 1)
    return table.assign(sentence=[_sentence(row, quantity) for row in rows(table)])


def _thinned(curve: pd.DataFrame, most: int) -> pd.DataFrame:
    group = np.arange(len(curve)) * min(most, len(curve)) // len(curve)
    return curve.groupby(group).agg(
        run=("run", "last"), split=("split", "last"), step=("step", "last"), tokens=("tokens", "last"),
        seconds=("seconds", "last"), value=("value", "mean"), low=("value", "min"), high=("value", "max"),
        records=("value", "size"),
    )  # fmt: skip


def _sentence(row: Any, quantity: str) -> str:
    text = f", {_SPLITS.get(row.split, row.split)}" if quantity == LOSS else ""
    tokens = f", {short_count(round(row.tokens))} tokens" if np.isfinite(row.tokens) else ""
    took = f", {duration(row.seconds)}" if np.isfinite(row.seconds) else ""
    value = (
        f"{row.value:.2f} nats per token"
        if quantity == LOSS
        else f"{DRAWN[quantity].title.lower()} {number(row.value)}"
    )
    mean = f" (mean of {row.records} records, {number(row.low)} to {number(row.high)})" if row.records > 1 else ""
    return f"{row.run}{text}, step {row.step:,}{tokens}{took}: {value}{mean}."


def _seconds_a_unit(table: pd.DataFrame) -> tuple[int, str]:
    last = float(table["seconds"].max()) if len(table) else 0.0
    return (3600, "hours") if last >= 7200 else (60, "minutes") if last >= 120 else (1, "seconds")


def _ends(table: pd.DataFrame) -> pd.DataFrame:
    """The last point of each line: of a run's splits that of unseen text, else that of the text that it learns."""
    order = table["split"].map({"unseen": 0, "": 0, TRAIN: 1}).fillna(2)
    best = table[order == order.groupby(table["line"]).transform("min")]
    return best.groupby("line", sort=False).tail(1)


def _chart(
    runs: Sequence[RunCurves], table: pd.DataFrame, ends: pd.DataFrame, quantity: str, along: Along
) -> alt.LayerChart:
    drawn = DRAWN[quantity]
    colours = SPLIT_COLOURS if len(runs) == 1 and quantity == LOSS else run_colours([run.name for run in runs])
    colour = alt.Color("line:N", legend=None, scale=alt.Scale(domain=list(colours), range=list(colours.values())))
    rules = _rules(runs, quantity)
    shown = [*table["low"], *table["high"], *rules["value"], *([0.0] if drawn.from_zero else [])]
    line_of_text = _line_of_text(quantity, min(shown), max(shown))
    labels = _labels(table, ends, quantity, line_of_text)
    x = _along_axis(along, table, labels["name"])
    y = alt.Y("value:Q", title=drawn.axis, scale=alt.Scale(zero=drawn.from_zero, nice=True), axis=_value_axis(quantity))
    base = alt.Chart(table).encode(x=x, y=y, color=colour, detail=["run:N", "split:N"])
    looks = _LOOKS if quantity == LOSS else _LOOKS_OF_ONE
    splits = list(looks)

    def by_split(values: list[Any]) -> alt.Scale:
        return alt.Scale(domain=splits, range=values)

    lines = base.mark_line().encode(
        strokeDash=alt.StrokeDash("split:N", legend=None, scale=by_split([look.dash for look in looks.values()])),
        strokeWidth=alt.StrokeWidth("split:N", legend=None, scale=by_split([look.width for look in looks.values()])),
        opacity=alt.Opacity("split:N", legend=None, scale=by_split([look.opacity for look in looks.values()])),
    )
    dots = base.mark_point(filled=True, size=26).encode(
        opacity=alt.Opacity("split:N", legend=None, scale=by_split([look.dots for look in looks.values()])),
        tooltip=alt.Tooltip("sentence:N"),
    )
    band = base.mark_area(opacity=0.18, line=False).encode(y=alt.Y("low:Q"), y2=alt.Y2("high:Q"))
    names = alt.Chart(labels).mark_text(align="left", dx=7, fontSize=11, fontWeight="bold", clip=False)
    named = names.encode(x=alt.X("x:Q"), y=alt.Y("value:Q"), text=alt.Text("name:N"), color=colour)
    zoom = alt.selection_interval(
        name=ZOOM, bind="scales", encodings=["x"], zoom="wheel![event.shiftKey]", clear="dblclick"
    )
    layers = [
        *([band] if drawn.spikes else []),
        *_drawn_rules(rules, line_of_text),
        lines.add_params(zoom),
        dots,
        named,
    ]
    height = _LOSS_HEIGHT if quantity == LOSS else _HEIGHT
    # Lines and dots would share one scale of opacity.
    apart = alt.Resolve(scale=alt.ScaleResolveMap(opacity="independent"))
    return alt.LayerChart(layer=layers, autosize=AUTOSIZE, width=WIDTH, height=height, resolve=apart)


def _along_axis(along: Along, table: pd.DataFrame, names: Iterable[str]) -> alt.X:
    """Steps, tokens or time, with room for the names at the ends."""
    title = {"step": "training step", "tokens": "training tokens"}.get(along)
    if title is None:
        title = f"time in the training loop ({_seconds_a_unit(table)[1]})"
    form = {"step": ",d", "tokens": "~s", "time": "~g"}[along]
    least = alt.Undefined if along == "time" else 1
    axis = alt.Axis(format=form, tickCount=6, tickMinStep=least, labelOverlap="greedy")
    scale = alt.Scale(nice=False, zero=False, range=[0, room_for(names)])
    return alt.X("x:Q", title=title, scale=scale, axis=axis)


def _value_axis(quantity: str) -> alt.Axis:
    if quantity == LEARNING_RATE:
        return alt.Axis(format="~g", tickCount=4)
    return alt.Axis(
        format=".0%" if quantity in ("dropped_fraction", VALID_CODE) else "~s" if quantity == SPEED else "~g",
        tickCount=5,
    )


def _labels(table: pd.DataFrame, ends: pd.DataFrame, quantity: str, gap: float) -> pd.DataFrame:
    """Each run's name with its last value, at the right edge, `gap` apart at least."""
    shown = [f"{value:.2f}" if quantity == LOSS else number(value) for value in ends["value"]]
    short = [name if len(name) <= _NAME_CHARACTERS else f"{name[: _NAME_CHARACTERS - 1]}…" for name in ends["line"]]
    return pd.DataFrame(
        {
            "line": list(ends["line"]),
            "x": float(table["x"].max()),
            "value": spread([float(value) for value in ends["value"]], gap),
            "name": [f"{name} {value}" for name, value in zip(short, shown, strict=True)],
        }
    )


def _line_of_text(quantity: str, low: float, high: float) -> float:
    """What a line of text is high, in the unit of the vertical axis from `low` to `high`."""
    plot = (_LOSS_HEIGHT if quantity == LOSS else _HEIGHT) - AXIS_ROOM - 20  # a nice scale ends beyond the values
    return max(high - low, 1e-9) * 14 / plot


def _rules(runs: Sequence[RunCurves], quantity: str) -> pd.DataFrame:
    """value, name: what the curves are held against: guessing by token frequency, or perfect balance."""
    drawn = DRAWN[quantity]
    if quantity == LOSS:
        values = dict.fromkeys(run.unigram_nats for run in runs if run.unigram_nats is not None)
        of = {value: [run.name for run in runs if run.unigram_nats == value] for value in values}
        named = {value: "" if len(of) == 1 else f" ({', '.join(names)})" for value, names in of.items()}
        notes = [(value, f"guessing by token frequency {value:.2f}{named[value]}") for value in of]
    else:
        notes = [] if drawn.even is None else [(drawn.even, drawn.even_name)]
    return pd.DataFrame(notes, columns=["value", "name"])


def _drawn_rules(rules: pd.DataFrame, gap: float) -> list[alt.Chart]:
    if rules.empty:
        return []
    base = alt.Chart(rules.assign(place=spread(list(rules["value"]), gap)))
    rule = base.mark_rule(strokeDash=[5, 4], color=NEUTRAL).encode(y=alt.Y("value:Q"))
    text = base.mark_text(align="right", baseline="bottom", dx=-4, dy=-3, fontSize=11, color=NEUTRAL, clip=False)
    return [rule, text.encode(x=alt.value("width"), y=alt.Y("place:Q"), text=alt.Text("name:N"))]
