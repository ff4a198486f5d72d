"""Figures of a training run: the loss of every split against the simplest guess there is."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from moe_core.figures.figure import Figure
from moe_core.figures.labels import rows, spread
from moe_core.figures.layout import AUTOSIZE, WIDTH, step_axis
from moe_core.figures.palette import NEUTRAL, SPLIT_COLOURS
from moe_core.runs.evaluation import Evaluation

MAX_POINTS = 200
"""Points per curve; training losses are averaged in as many stretches of steps."""
_NAMES = {
    "train": "training text",
    "validation": "validation (same templates or sources)",
    "unseen": "unseen (held-out templates or sources)",
}
_SHORT = {"train": "training", "validation": "validation", "unseen": "unseen"}
_DASHES = {"train": [1, 0], "validation": [7, 3], "unseen": [1, 0]}
_WIDTHS = {"train": 1.2, "validation": 2.2, "unseen": 2.6}


def loss_curves(curves: pd.DataFrame, unigram_nats: float | None = None) -> alt.LayerChart:
    """Loss in nats per token by training step: lower is better.

    `curves` has columns step, series ("train" | "validation" | "unseen"), nats. `unigram_nats` is the loss of always
    guessing by how frequent a token is, drawn as a dashed line: a model that has not passed it has learnt nothing from
    context.
    """
    parts = [_averaged_curve(part) for _, part in curves.dropna(subset=["nats"]).groupby("series", sort=False)]
    data = pd.concat(parts, ignore_index=True) if parts else curves.head(0).assign(steps=0)
    data["sentence"] = [
        f"Step {row.step:,.0f}, {_NAMES.get(row.series, row.series)}: {nats(row.nats)} nats per token"
        + (f" (mean of {row.steps} records)." if row.steps > 1 else ".")
        for row in rows(data)
    ]
    series = [name for name in _NAMES if name in set(data["series"])]
    colour = alt.Color(
        "series:N", scale=alt.Scale(domain=series, range=[SPLIT_COLOURS[name] for name in series]), legend=None
    )
    labels = _end_labels(data, series, unigram_nats)
    x = step_axis(names=labels.data["name"])
    y = alt.Y("nats:Q", title="loss (nats per token)", scale=alt.Scale(zero=False, nice=True))
    layers: list[alt.Chart] = []
    for name in series:
        one = alt.Chart(data).transform_filter(f"datum.series == '{name}'")
        line = one.mark_line(strokeWidth=_WIDTHS[name], strokeDash=_DASHES[name], opacity=0.8 if name == "train" else 1)
        layers.append(line.encode(x=x, y=y, color=colour))
        dots = one.mark_point(filled=True, size=26 if name != "train" else 8, opacity=1 if name != "train" else 0.01)
        layers.append(dots.encode(x=x, y=y, color=colour, tooltip="sentence:N"))
    layers.append(labels.encode(color=colour))
    if unigram_nats is not None and np.isfinite(unigram_nats):
        layers += _baseline(unigram_nats)
    return alt.LayerChart(layer=layers, data=data, autosize=AUTOSIZE, width=WIDTH, height=320)


def nats(value: float) -> str:
    """A loss for people: two decimals, as in the list of runs."""
    return f"{value:.2f}"


def loss_figure(
    train: pd.DataFrame,
    evaluations: pd.DataFrame,
    baselines: pd.DataFrame,
    *,
    scored: Evaluation | None = None,
    held_out: bool = True,
) -> Figure | None:
    """Does the model learn? Frames of the run's metrics of kind train, evaluation and baseline; None if both first
    ones are empty.

    `scored` are the figures of the whole held-out text, once there are any: the verdict is then of these, the curves
    are of a part of it. `held_out`: whether such text is ever scored; not where someone else's loop trains.
    """
    parts = []
    if len(train) and train["loss"].notna().any():
        parts.append(pd.DataFrame({"step": train["step"], "series": "train", "nats": train["loss"]}))
    if len(evaluations):
        parts.append(
            evaluations.rename(columns={"split": "series", "nats_per_token": "nats"})[["step", "series", "nats"]]
        )
    if not parts:
        return None
    curves = pd.concat(parts, ignore_index=True).astype({"nats": float})
    unigram = float(baselines["unigram_nats"].iloc[-1].get("unseen", float("nan"))) if len(baselines) else float("nan")
    unseen = curves[curves["series"] == "unseen"]
    verdict = "The first evaluation on held-out text is still to come."
    if not held_out:
        newest = curves.dropna(subset="nats").sort_values("step", kind="stable")["nats"].iloc[-1]
        verdict = f"Loss on the text that it is trained on is {nats(float(newest))} nats per token; lower is better."
    if len(unseen):
        last = float(unseen.sort_values("step", kind="stable")["nats"].iloc[-1])
        gain = f", {nats(unigram - last)} below guessing by token frequency" if unigram == unigram else ""
        verdict = f"Loss on unseen text is {nats(last)} nats per token{gain}; lower is better."
    if scored is not None and scored.unseen.nats_per_token is not None:
        whole, guess = scored.unseen.nats_per_token, scored.baselines.unigram_nats
        verdict = (
            f"Loss on all unseen text is {nats(whole)} nats per token, {nats(guess - whole)} below guessing "
            "by token frequency; lower is better. The curves are of a part of that text."
        )
    chart = loss_curves(curves, unigram if unigram == unigram else None)
    return Figure(
        "loss", "Loss by training step", "Does the model learn, also for unseen text?", verdict, chart, curves
    )


def _averaged_curve(curve: pd.DataFrame) -> pd.DataFrame:
    """At most MAX_POINTS points: means of stretches of equally many records, at their last step."""
    curve = curve.sort_values("step", kind="stable")
    group = np.arange(len(curve)) * min(MAX_POINTS, len(curve)) // max(len(curve), 1)
    means = curve.assign(group=group).groupby("group").agg(
        step=("step", "last"), series=("series", "first"), nats=("nats", "mean"), steps=("nats", "size")
    )  # fmt: skip
    return means.reset_index(drop=True)


def _end_labels(data: pd.DataFrame, series: list[str], unigram_nats: float | None) -> alt.Chart:
    last = data.sort_values("step", kind="stable").groupby("series", sort=False).last().loc[series]
    drawn = [*data["nats"], *([unigram_nats] if unigram_nats else [])]
    gap = max(max(drawn) - min(drawn), 1e-9) / 18 if drawn else 1.0
    ends = pd.DataFrame(
        {
            "step": float(data["step"].max()) if len(data) else 0.0,
            "nats": spread([float(value) for value in last["nats"]], gap),
            "series": series,
            "name": [f"{_SHORT[name]} {nats(value)}" for name, value in zip(series, last["nats"], strict=True)],
        }
    )
    mark = alt.Chart(ends).mark_text(align="left", dx=7, fontSize=11, fontWeight="bold")
    labels: alt.Chart = mark.encode(x="step:Q", y="nats:Q", text="name:N")
    return labels


def _baseline(unigram: float) -> list[alt.Chart]:
    note = pd.DataFrame({"nats": [unigram], "name": [f"guessing by token frequency {nats(unigram)}"]})
    base = alt.Chart(note).encode(y="nats:Q")
    rule = base.mark_rule(strokeDash=[5, 4], color=NEUTRAL)
    text = base.mark_text(align="right", baseline="bottom", dx=-4, dy=-3, fontSize=11, color=NEUTRAL)
    return [rule, text.encode(x=alt.value("width"), text="name:N")]
