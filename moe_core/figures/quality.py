"""Figures of comparisons (moe_core.experiments): the mixture against dense models, routers against each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import altair as alt
import pandas as pd

from moe_core.data.splits import HeldOutSplit
from moe_core.experiments.comparison_result import ArmResult, ComparisonResult, Difference, Score
from moe_core.experiments.speed_result import TRAINING_STEP
from moe_core.experiments.trend import seed_differences
from moe_core.experiments.verdicts import (
    SIDE_BY_SIDE,
    decimals,
    difference_words,
    losses_verdict,
    speed_verdict,
    split_name,
    training_words,
    trend_verdict,
)
from moe_core.figures.figure import Figure
from moe_core.figures.labels import rows
from moe_core.figures.layout import AXIS_ROOM, bars_height, layered
from moe_core.figures.palette import BAR, HEAT, LAYER_SHADES, NEUTRAL
from moe_core.words import signed

ARM_COLOURS = (HEAT, *LAYER_SHADES)
"""The mixture, then the dense arms in their order."""
Against = Literal["tokens", "flops", "seconds"]
_AXES: dict[Against, str] = {
    "tokens": "training tokens",
    "flops": "training operations (FLOPs, 3 times those of the forward passes)",
    "seconds": "seconds of training at the measured time a step, evaluations left out",
}
_SUFFIXES: dict[HeldOutSplit, str] = {"unseen": "", "validation": "_validation"}
"""Of figures' names: those of the unseen split have the plain one."""


def differences_figure(result: ComparisonResult, split: HeldOutSplit) -> Figure:
    """Is the mixture better, and on which text? Difference of each dense arm to the mixture, with its interval.

    The figures of both splits have one scale, to be seen side by side.
    """
    records = []
    for arm in result.arms[1:]:
        scores = _scores_by_text(arm, split)
        records += [
            {
                "text": text,
                "arm": arm.label,
                **_interval_columns(score.difference),
                "sentence": _arm_sentence(arm, text, score),
            }
            for text, score in scores.items()
            if score.difference is not None
        ]
    frame = pd.DataFrame(records)
    labels = [arm.label for arm in result.arms]
    colour = _colour_with_legend(labels[1:], ARM_COLOURS[1:])
    base = alt.Chart(frame).encode(
        y=alt.Y("text:N", title="text", sort=None, axis=alt.Axis(labelLimit=160)),
        yOffset=alt.YOffset("arm:N", sort=labels[1:]),
        color=colour,
        tooltip=alt.Tooltip("sentence:N"),
    )
    title = _above(result.arms[0])
    layers = [_zero_rule(), *_points_with_intervals(base, title, _common_scale(result))]
    chart = layered(layers, frame, bars_height(2 * frame["text"].nunique()) + AXIS_ROOM)
    return Figure(
        f"moe_against_dense{_SUFFIXES[split]}", f"Against dense models: {split_name(result, split)}",
        "Is the mixture better, and on which text?",
        f"{training_words(result)} {losses_verdict(result, split)}", chart, frame.drop(columns="sentence"),
    )  # fmt: skip


def trend_figure(result: ComparisonResult, split: HeldOutSplit) -> Figure | None:
    """Where does it go with more tokens? Every seed's difference to the mixture at each budget; a line joins what one
    seed came to. None for one budget."""
    if not result.longer:
        return None
    first, *others = result.arms
    frame = pd.DataFrame([record for arm in others for record in _seed_records(result, arm, split)])
    labels = [arm.label for arm in result.arms]
    places = sorted(frame["tokens"].unique())
    x = alt.X(
        "tokens:Q",
        title="training tokens",
        scale=alt.Scale(type="log", domain=[0.8 * places[0], 1.25 * places[-1]], nice=False),
        axis=alt.Axis(format=".3~s", values=places),
    )
    low, high = _trend_range(result)
    y = alt.Y(
        "difference:Q",
        title=_above(first),
        scale=alt.Scale(domain=[low, high], nice=False),
        axis=alt.Axis(format="+.3~f", tickCount=7),
    )
    colour = _colour_with_legend(labels[1:], ARM_COLOURS[1:])
    base = alt.Chart(frame)
    layers = [
        base.mark_rule(strokeDash=[5, 4], color=NEUTRAL).encode(y=alt.datum(0.0)),
        base.mark_circle(size=30, opacity=0.55).encode(x=x, y=y, color=colour, tooltip=alt.Tooltip("sentence:N")),
        base.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour, detail=alt.Detail("seed:N")),
    ]
    return Figure(
        f"trend{_SUFFIXES[split]}", f"More tokens: {split_name(result, split)}", "Where does it go with more tokens?",
        trend_verdict(result), layered(layers, frame, 340), frame.drop(columns="sentence"),
    )  # fmt: skip


def _colour_with_legend(labels: Sequence[str], colours: Sequence[str]) -> alt.Color:
    """One name below the other, as a phone and half a page have no room for them side by side."""
    return alt.Color(
        "arm:N",
        title=None,
        scale=alt.Scale(domain=list(labels), range=list(colours[: len(labels)])),
        legend=alt.Legend(orient="top", labelLimit=300, columns=1, symbolOpacity=1),
    )


def _above(arm: ArmResult) -> str:
    """Title of an axis of differences to an arm."""
    return f"nats per token above {arm.label.partition(' (')[0]}"


def _seed_records(result: ComparisonResult, arm: ArmResult, split: HeldOutSplit) -> list[dict[str, Any]]:
    return [
        {
            "arm": arm.label,
            "tokens": one.tokens,
            "seed": one.seed,
            "difference": one.nats,
            "sentence": f"{arm.label}, {one.tokens:,} tokens, seed {one.seed}: {signed(one.nats, 4)} nats per token.",
        }
        for one in seed_differences(result, arm, split)
    ]


def _trend_range(result: ComparisonResult) -> tuple[float, float]:
    """Of both splits and all budgets, with 0 inside and a margin."""
    values = [
        one.nats for arm in result.arms[1:] for split in SIDE_BY_SIDE for one in seed_differences(result, arm, split)
    ]
    low, high = min(0.0, *values), max(0.0, *values)
    margin = 0.08 * max(high - low, 1e-3)
    return low - margin, high + margin


def _scores_by_text(arm: ArmResult, split: HeldOutSplit) -> dict[str, Score]:
    return {"all text": arm.scores.nats(split), **arm.domains(split)}


def _common_scale(result: ComparisonResult) -> alt.Scale:
    """One axis for the differences of both splits."""
    values = [0.0]
    for arm in result.arms[1:]:
        for split in SIDE_BY_SIDE:
            for score in _scores_by_text(arm, split).values():
                difference = score.difference
                if difference is not None:
                    values += [end for end in (difference.mean, difference.low, difference.high) if end is not None]
    return alt.Scale(domain=[min(values), max(values)], zero=True)


def learning_figure(result: ComparisonResult, against: Against, split: HeldOutSplit) -> Figure | None:
    """Who learns faster: loss on a split against tokens, operations or seconds; None where no times are known."""
    frame = _curve_frame(result, against, split)
    if frame is None:
        return None
    colour = _colour_with_legend([arm.label for arm in result.arms], ARM_COLOURS)
    # The first steps from random weights would press all that matters into a line at the bottom.
    shown = frame[frame["step"] > 0]
    most = float(shown["x"].max())
    x = alt.X(
        "x:Q",
        title=_AXES[against],
        scale=alt.Scale(domain=[0, most], nice=False),
        axis=alt.Axis(format="~s", tickCount=7),
    )
    y = alt.Y("nats:Q", title="nats per token", scale=alt.Scale(zero=False))
    data = shown.assign(
        sentence=[f"{row.arm}: {row.nats:.3f} nats per token after step {row.step:,.0f}." for row in rows(shown)]
    )
    lines = alt.Chart(data).mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=26, filled=True))
    chart = layered([lines.encode(x=x, y=y, color=colour, tooltip=alt.Tooltip("sentence:N"))], data, 400)
    about = {
        "tokens": losses_verdict(result, split),
        "flops": "Equal active FLOPs cost the same here; a dense model of the mixture's size pays more for a token.",
        "seconds": speed_verdict(result, "training step"),
    }
    return Figure(
        f"loss_against_{against}{_SUFFIXES[split]}",
        f"Loss against {against.replace('flops', 'operations')}: {split_name(result, split)}", "Who learns faster?",
        about[against], chart, frame.rename(columns={"x": against}),
    )  # fmt: skip


def routers_figure(result: ComparisonResult, split: HeldOutSplit) -> Figure:
    """Which router? Difference of the loss to the first one, with its interval; load, dead experts and domains."""
    first = result.arms[0]
    records = []
    for arm in result.arms:
        score, routing = arm.scores.nats(split), arm.mixture_routing()
        records.append(
            {
                "router": arm.label,
                "nats": score.mean,
                **(
                    _interval_columns(score.difference)
                    if score.difference
                    else {"difference": 0.0, "low": None, "high": None}
                ),
                "max_violation": routing.max_violation.mean,
                "dead_experts": routing.dead_experts,
                "experts_per_token": routing.experts_per_token,
                "domain_nmi": routing.domain_nmi,
                "domain_nmi_null_p99": routing.domain_nmi_null_p99,
                "tokens_per_second": _tokens_per_second(result, arm.name),
                "sees_future": arm.sees_future,
                "sentence": _arm_sentence(arm, split_name(result, split), score),
            }
        )
    frame = pd.DataFrame(records).sort_values("nats", ignore_index=True)
    usual = records[0]["experts_per_token"]
    data = frame.assign(
        label=[
            f"MaxVio {row.max_violation:.2f}, dead {row.dead_experts:.3g}"
            + ("" if pd.isna(row.domain_nmi) else f", NMI {row.domain_nmi:.2f}")
            + ("" if pd.isna(row.domain_nmi_null_p99) else f" (chance {row.domain_nmi_null_p99:.2f})")
            + ("" if row.experts_per_token == usual else f", {row.experts_per_token:.1f} experts")
            + ("" if pd.isna(row.tokens_per_second) else f", {row.tokens_per_second / 1000:.1f}k tokens/s")
            for row in rows(frame)
        ]
    )
    # A router that sees the future may be far away; it must not press the others together.
    causal = data[~data["sees_future"]]
    low = min(0.0, float(causal[["low", "difference"]].min(axis=1).min()))
    high = max(0.0, float(causal[["high", "difference"]].max(axis=1).max()))
    span = max(high - low, 1e-3)
    beyond = (data["difference"] < low) | (data["difference"] > high)
    data = data.assign(
        end=data[["high", "difference"]].max(axis=1).clip(low, high),
        label=data["label"].where(
            ~beyond, data["difference"].map(lambda nats: f"outside: {signed(nats, 3)}; ") + data["label"]
        ),
    )
    scale = alt.Scale(domain=[low - 0.05 * span, high + 1.3 * span], nice=False)
    base = alt.Chart(data).encode(
        y=alt.Y("router:N", title=None, sort=list(data["router"]), axis=alt.Axis(labelLimit=220)),
        tooltip=alt.Tooltip("sentence:N"),
        opacity=alt.condition("datum.sees_future", alt.value(0.4), alt.value(1.0)),
    )
    title = f"nats per token above {first.label}"
    layers = [
        _zero_rule(),
        *_points_with_intervals(base, title, scale, BAR),
        base.mark_text(align="left", dx=9, fontSize=11).encode(x=alt.X("end:Q"), text=alt.Text("label:N")),
    ]
    return Figure(
        f"routers{_SUFFIXES[split]}", f"Routers against each other: {split_name(result, split)}",
        "Which router predicts best, and how does it share the work?",
        f"{training_words(result)} {losses_verdict(result, split)}",
        layered(layers, data, bars_height(len(data))), frame.drop(columns="sentence"),
    )  # fmt: skip


def figure_pairs(result: ComparisonResult) -> list[list[Figure]]:
    """All figures of a result, the most telling first; what shows the unseen split stands beside the other one."""
    if result.kind == "routers":
        return [[routers_figure(result, split) for split in SIDE_BY_SIDE]]
    sides: Sequence[Against] = ("tokens", "flops", "seconds")
    drawn: list[list[Figure] | list[Figure | None]] = [
        [differences_figure(result, split) for split in SIDE_BY_SIDE],
        [trend_figure(result, split) for split in SIDE_BY_SIDE],
        *([learning_figure(result, against, split) for split in SIDE_BY_SIDE] for against in sides),
    ]
    pairs = [[figure for figure in pair if figure is not None] for pair in drawn]
    return [pair for pair in pairs if pair]


def _curve_frame(result: ComparisonResult, against: Against, split: HeldOutSplit) -> pd.DataFrame | None:
    training = result.config.training
    tokens_per_step = training.batch_size * training.seq_len
    records = []
    for arm in result.arms:
        if against == "tokens":
            per_step = float(tokens_per_step)
        elif against == "flops":
            per_step = 3.0 * arm.flops_per_token.computed * tokens_per_step
        elif result.speed is not None:
            per_step = result.speed.tasks[TRAINING_STEP].arms[arm.name].seconds
        else:
            return None
        curve = arm.curve
        records += [
            {"arm": arm.label, "step": step, "x": step * per_step, "nats": nats}
            for step, nats in zip(curve.step, curve.nats(split), strict=True)
        ]
    return pd.DataFrame(records)


def _tokens_per_second(result: ComparisonResult, arm: str) -> float | None:
    if result.speed is None:
        return None
    task = result.speed.tasks[TRAINING_STEP]
    return float(task.tokens / task.arms[arm].seconds)


def _interval_columns(difference: Difference) -> dict[str, float | None]:
    return {"difference": difference.mean, "low": difference.low, "high": difference.high}


def _arm_sentence(arm: ArmResult, text: str, score: Score) -> str:
    words = difference_words(score.difference)
    return f"{arm.label}, {text}: {decimals(score.mean, 3)} nats per token" + (f"; {words}." if words else ".")


def _zero_rule() -> alt.Chart:
    nothing = alt.Chart(pd.DataFrame({"difference": [0.0]})).mark_rule(strokeDash=[5, 4], color=NEUTRAL)
    rule: alt.Chart = nothing.encode(x=alt.X("difference:Q"))
    return rule


def _points_with_intervals(
    base: alt.Chart, title: str, scale: alt.Scale | None = None, colour: str | None = None
) -> list[alt.Chart]:
    """A dot for the mean, a line for the interval."""
    own: dict[str, Any] = {} if colour is None else {"color": colour}
    scale = scale or alt.Scale(zero=True)
    x = alt.X("difference:Q", title=title, scale=scale, axis=alt.Axis(tickCount=7, format="+.3~f"))
    return [
        base.mark_rule(strokeWidth=2, clip=True, **own).encode(
            x=alt.X("low:Q", title=title, scale=scale), x2=alt.X2("high:Q")
        ),
        base.mark_point(filled=True, size=70, opacity=1, clip=True, **own).encode(x=x),
    ]
