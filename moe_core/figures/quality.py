"""Figures of comparisons (moe_core.experiments): the mixture against dense models, routers against each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import altair as alt
import pandas as pd

from moe_core.experiments.comparison_result import TRAINING_STEP, ArmResult, ComparisonResult, Difference, Score
from moe_core.experiments.verdicts import decimals, difference_words, losses_verdict, speed_verdict
from moe_core.figures.figure import Figure
from moe_core.figures.labels import rows, spread
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
_NAME_ROOM = 0.3
"""Part of the horizontal axis kept free for the names of the curves."""


def differences_figure(result: ComparisonResult) -> Figure:
    """Is the mixture better, and on which text? Difference of each dense arm to the mixture, with its interval."""
    records = []
    for arm in result.arms[1:]:
        scores = {"all text": arm.scores.unseen_nats, **arm.by_domain}
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
    colour = alt.Color(
        "arm:N",
        title=None,
        scale=alt.Scale(domain=labels[1:], range=list(ARM_COLOURS[1 : len(labels)])),
        legend=alt.Legend(orient="top", labelLimit=300),
    )
    base = alt.Chart(frame).encode(
        y=alt.Y("text:N", title="text", sort=None, axis=alt.Axis(labelLimit=160)),
        yOffset=alt.YOffset("arm:N", sort=labels[1:]),
        color=colour,
        tooltip="sentence:N",
    )
    title = f"loss above that of {labels[0]} (nats per token, unseen text)"
    layers = [_zero_rule(), *_points_with_intervals(base, title)]
    chart = layered(layers, frame, bars_height(2 * frame["text"].nunique()) + AXIS_ROOM // 2)
    return Figure(
        "moe_against_dense", "The mixture against dense models", "Is the mixture better, and on which text?",
        losses_verdict(result), chart, frame.drop(columns="sentence"),
    )  # fmt: skip


def learning_figure(result: ComparisonResult, against: Against) -> Figure | None:
    """Who learns faster: loss on unseen text against tokens, operations or seconds; None where no times are known."""
    frame = _curve_frame(result, against)
    if frame is None:
        return None
    labels = [arm.label for arm in result.arms]
    colour = alt.Color("arm:N", scale=alt.Scale(domain=labels, range=list(ARM_COLOURS[: len(labels)])), legend=None)
    # The first steps from random weights would press all that matters into a line at the bottom.
    shown = frame[frame["step"] > 0]
    most = float(shown["x"].max())
    x = alt.X(
        "x:Q",
        title=_AXES[against],
        scale=alt.Scale(domain=[0, most * (1 + _NAME_ROOM)], nice=False),
        axis=alt.Axis(format="~s", tickCount=7),
    )
    y = alt.Y("nats:Q", title="loss on unseen text (nats per token)", scale=alt.Scale(zero=False))
    data = shown.assign(
        sentence=[f"{row.arm}: {row.nats:.3f} nats per token after step {row.step:,.0f}." for row in rows(shown)]
    )
    lines = alt.Chart(data).mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=26, filled=True))
    ends = data.sort_values("step").groupby("arm", sort=False).last().loc[labels].reset_index()
    gap = (float(data["nats"].max()) - float(data["nats"].min())) / 18
    ends = ends.assign(place=spread([float(value) for value in ends["nats"]], gap))
    names = alt.Chart(ends).mark_text(align="left", dx=7, fontSize=11, fontWeight="bold")
    chart = layered(
        [
            lines.encode(x=x, y=y, color=colour, tooltip="sentence:N"),
            names.encode(x="x:Q", y="place:Q", text="arm:N", color=colour),
        ],
        data,
        320,
    )
    about = {
        "tokens": losses_verdict(result),
        "flops": "Equal active FLOPs cost the same here; a dense model of the mixture's size pays more for a token.",
        "seconds": speed_verdict(result, "training step"),
    }
    return Figure(
        f"loss_against_{against}", f"Loss against {against.replace('flops', 'operations')}", "Who learns faster?",
        about[against], chart, frame.rename(columns={"x": against}),
    )  # fmt: skip


def routers_figure(result: ComparisonResult) -> Figure:
    """Which router? Difference of the loss to the first one, with its interval; load, dead experts and domains."""
    first = result.arms[0]
    records = []
    for arm in result.arms:
        score, routing = arm.scores.unseen_nats, arm.mixture_routing()
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
                "sentence": _arm_sentence(arm, "unseen", score),
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
        tooltip="sentence:N",
        opacity=alt.condition("datum.sees_future", alt.value(0.4), alt.value(1.0)),
    )
    title = f"loss above that of {first.label} (nats per token, unseen text)"
    layers = [
        _zero_rule(),
        *_points_with_intervals(base, title, scale, BAR),
        base.mark_text(align="left", dx=9, fontSize=11).encode(x="end:Q", text="label:N"),
    ]
    return Figure(
        "routers", "Routers against each other", "Which router predicts best, and how does it share the work?",
        losses_verdict(result), layered(layers, data, bars_height(len(data))), frame.drop(columns="sentence"),
    )  # fmt: skip


def result_figures(result: ComparisonResult) -> list[Figure]:
    """All figures of a result, the most telling first."""
    if result.kind == "routers":
        return [routers_figure(result)]
    sides: Sequence[Against] = ("tokens", "flops", "seconds")
    learning = [learning_figure(result, against) for against in sides]
    return [differences_figure(result), *(figure for figure in learning if figure is not None)]


def _curve_frame(result: ComparisonResult, against: Against) -> pd.DataFrame | None:
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
            for step, nats in zip(curve.step, curve.unseen, strict=True)
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
    rule: alt.Chart = nothing.encode(x="difference:Q")
    return rule


def _points_with_intervals(
    base: alt.Chart, title: str, scale: alt.Scale | None = None, colour: str | None = None
) -> list[alt.Chart]:
    """A dot for the mean, a line for the interval."""
    own: dict[str, Any] = {} if colour is None else {"color": colour}
    scale = scale or alt.Scale(zero=True)
    x = alt.X("difference:Q", title=title, scale=scale, axis=alt.Axis(tickCount=7, format="+.3~f"))
    return [
        base.mark_rule(strokeWidth=2, clip=True, **own).encode(x=alt.X("low:Q", title=title, scale=scale), x2="high:Q"),
        base.mark_point(filled=True, size=70, opacity=1, clip=True, **own).encode(x=x),
    ]
