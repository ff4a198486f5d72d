"""Figures of what matters: the loss without an expert, what predicts it, and which experts are alike."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from moe_core.data.windows import window_words
from moe_core.errors import UsageError
from moe_core.figures.expert_order import ALL, MapView, in_columns
from moe_core.figures.figure import Figure, slug
from moe_core.figures.labels import rows
from moe_core.figures.layout import COLUMN_AXIS, MAX_COLUMNS, ROW_AXIS, layered
from moe_core.figures.maps import CELL, nats_limit, nats_map, share_map
from moe_core.figures.palette import BAR, HEAT, LAYER_SHADES, NEUTRAL
from moe_core.routing.measures.causes import ablation_verdict, heads_beside_experts, importance_verdict
from moe_core.words import number, p_value, percent, signed

MAX_POINTS = 2000
"""More experts than this are counted in a grid instead of drawn as dots."""
_NAMED_POINTS = 8
_INTERVAL_POINTS = 150
_NATS = "change of loss (nats per token)"
_MEASURES = {
    "load": "load (share of the layer's choices)",
    "specialization": "domain specialization (largest lift over domains)",
    "vocabulary": "vocabulary specialization (mean share of its tokens)",
    "confidence": "confidence (mean weight where chosen)",
    "reap": "REAP (mean of weight times output size)",
    "ean": "EAN (summed output size)",
}
# What stands in brackets has a line of its own: a browser's letters may be wider than those the room was measured with.
_TWO_LINES = alt.Axis(
    labelLimit=330,
    labelExpr="indexof(datum.label, ' (') < 0 ? datum.label"
    " : [split(datum.label, ' (')[0], '(' + split(datum.label, ' (')[1]]",
)
_SIMILARITY = "similarity of outputs (linear CKA)"


def ablation_map_figure(effects: pd.DataFrame, view: MapView = ALL, places: pd.DataFrame | None = None) -> Figure:
    """What does the model lose without each expert? Frame of evaluation's ablation_map, of which all text is drawn.

    The scale is maps.nats_limit of all effects in the frame, so that it is that of ablation_domains_figure; a cell
    whose interval holds 0 is faded. `view` and `places`: see expert_order.in_columns.
    """
    frame = effects[effects["domain"] == "all"].reset_index(drop=True)
    if frame.empty:
        raise UsageError(f"no effect on all text is known, of {sorted(set(effects['domain']))} only; measure it again")
    data = frame.assign(
        nats=frame["delta_nats"],
        telling=frame["delta_nats"].abs(),
        sentence=[_effect(row.layer, row.expert, "", row) for row in rows(frame)],
    )
    data, x = in_columns(data, places, view, telling="telling", drawn="the one with the largest effect")
    chart = nats_map(
        data[["layer", "expert", "column", "nats", "uncertain", "sentence"]],
        x=x,
        y=alt.Y("layer:O", title="MoE layer", axis=ROW_AXIS),
        limit=nats_limit(effects["delta_nats"]),
        title=_NATS,
    )
    mode = str(effects.attrs.get("mode", "zero")).removeprefix("zero")
    return Figure(
        f"ablation_map_{mode}" if mode else "ablation_map",
        "Without each expert: all text" + (f" ({mode})" if mode else ""),
        f"What does the model lose on all text when an expert is switched off?{_windows(effects)}",
        ablation_verdict(effects), chart, frame,
    )  # fmt: skip


def heads_map_figure(heads: pd.DataFrame, experts: pd.DataFrame | None = None) -> Figure:
    """What does the model lose without each attention head? Frame of evaluation's head_effects, all text.

    `experts`: the frame of ablation_map, whose scale the map shares, so that colours mean the same in both.
    """
    frame = heads[heads["domain"] == "all"].reset_index(drop=True)
    effects = heads["delta_nats"] if experts is None else pd.concat([heads["delta_nats"], experts["delta_nats"]])
    data = frame.assign(
        nats=frame["delta_nats"],
        sentence=[_effect(row.layer, row.head, "", row, "head") for row in rows(frame)],
    )
    chart = nats_map(
        data[["layer", "head", "nats", "uncertain", "sentence"]],
        x=alt.X("head:O", title="attention head", axis=COLUMN_AXIS),
        y=alt.Y("layer:O", title="layer", axis=ROW_AXIS),
        limit=nats_limit(effects),
        title=_NATS,
    )
    verdict = " ".join(filter(None, (ablation_verdict(heads, "head"), heads_beside_experts(heads, experts))))
    return Figure(
        "heads_map", "Without each attention head: all text",
        f"What does the model lose on all text when an attention head is masked?{_windows(heads)}",
        verdict, chart, frame,
    )  # fmt: skip


def _windows(effects: pd.DataFrame) -> str:
    """In which windows the text was read, where the frame says it."""
    return f" {window_words(rule=effects.attrs['windows'])}" if "windows" in effects.attrs else ""


def ablation_domains_figure(effects: pd.DataFrame, layer: int) -> Figure:
    """Which texts need which expert of a layer? Frame of evaluation's ablation_map; scale and fading as in
    ablation_map_figure. Of more than MAX_COLUMNS experts those with the largest effects are drawn."""
    frame = effects[effects["layer"] == layer].reset_index(drop=True)
    if frame.empty:
        raise UsageError(
            f"no expert of layer {layer} has been switched off; expected one of "
            f"{sorted({int(value) for value in effects['layer']})}"
        )
    data, note = frame, ""
    if frame["expert"].nunique() > MAX_COLUMNS:
        size = frame["delta_nats"].abs().groupby(frame["expert"]).max().nlargest(MAX_COLUMNS)
        data = frame[frame["expert"].isin(size.index)]
        note = f" ({MAX_COLUMNS} of {frame['expert'].nunique()}, those with the largest effects)"
    data = data.assign(
        nats=data["delta_nats"],
        sentence=[
            _effect(layer, row.expert, "" if row.domain == "all" else f" {row.domain}", row) for row in rows(data)
        ],
    )
    chart = nats_map(
        data[["layer", "expert", "domain", "nats", "uncertain", "sentence"]],
        x=alt.X("expert:O", title=f"expert of layer {layer}{note}", axis=COLUMN_AXIS),
        y=alt.Y("domain:N", title="text", sort=list(dict.fromkeys(effects["domain"])), axis=alt.Axis(labelLimit=160)),
        limit=nats_limit(effects["delta_nats"]),
        title=_NATS,
    )
    return Figure(
        f"ablation_domains_layer_{layer}", f"Who needs the experts of layer {layer}",
        "Which kind of text loses most without which expert?", ablation_verdict(frame), chart, frame,
    )  # fmt: skip


def importance_figure(importance: pd.DataFrame, correlations: pd.DataFrame, measure: str) -> Figure:
    """Does a measure predict which experts matter? Frames of evaluation's importance.measures and rank_correlations.

    One dot an expert; more than MAX_POINTS are counted in a grid.
    """
    if measure not in importance:
        known = [name for name in _MEASURES if name in importance]
        raise UsageError(f"unknown measure {measure!r}; expected one of {', '.join(known)}")
    known_points = importance[importance[measure].notna() & importance["delta_nats"].notna()].reset_index(drop=True)
    title = _MEASURES.get(measure, measure)
    name = title.split(" (")[0]
    chart = (
        _grid(known_points, measure, title) if len(known_points) > MAX_POINTS else _dots(known_points, measure, title)
    )
    row = correlations[correlations["measure"] == measure]
    return Figure(
        f"importance_{slug(measure)}", f"Does {name} predict what matters?",
        f"Do experts with more {name} cost more when they are switched off?",
        importance_verdict(row), chart, importance,
    )  # fmt: skip


def correlations_figure(correlations: pd.DataFrame) -> Figure:
    """Which measure predicts what matters? Frame of evaluation's rank_correlations: rho with its 95 % interval."""
    data = correlations.assign(
        name=[_MEASURES.get(measure, measure) for measure in correlations["measure"]],
        label=["unknown" if rho != rho else f"{rho:.2f}".replace("-", "−") for rho in correlations["rho"]],
        end=correlations[["high", "rho"]].max(axis=1),
        sentence=[
            f"{row.measure}: rank correlation {row.rho:.2f} with the change of loss over {row.n} experts, 95 % "
            f"interval {row.low:.2f} to {row.high:.2f} ({p_value(row.p_adjusted)}): {row.verdict}."
            for row in rows(correlations)
        ],
    )
    base = alt.Chart(data).encode(
        y=alt.Y("name:N", title=None, sort=list(data["name"]), axis=_TWO_LINES), tooltip=alt.Tooltip("sentence:N")
    )
    x = alt.X("rho:Q", title="rank correlation with the loss without the expert (0 by chance)",
              scale=alt.Scale(domain=[-1, 1.15], nice=False), axis=alt.Axis(values=[-1, -0.5, 0, 0.5, 1]))  # fmt: skip
    zero = alt.Chart(pd.DataFrame({"rho": [0.0]})).mark_rule(strokeDash=[5, 4], color=HEAT).encode(x=alt.X("rho:Q"))
    layers = [
        zero,
        base.mark_rule(strokeWidth=2, color=NEUTRAL).encode(x=alt.X("low:Q"), x2=alt.X2("high:Q")),
        base.mark_point(size=90, filled=True, color=BAR, opacity=1).encode(x=x),
        base.mark_text(align="left", dx=8, fontSize=11).encode(x=alt.X("end:Q"), text=alt.Text("label:N")),
    ]
    return Figure(
        "importance", "What predicts which experts matter", "Does anything we can observe tell what matters?",
        importance_verdict(correlations), layered(layers, data, 60 + 34 * len(data)), correlations,
    )  # fmt: skip


def similarity_figure(similarity: pd.DataFrame, layer: int) -> Figure:
    """Which experts of a layer do the same work? Frame of evaluation's expert_similarity, its output_cka.

    Of more than MAX_COLUMNS experts those that are most like another are drawn.
    """
    own = similarity[similarity["layer"] == layer]
    if own.empty:
        raise UsageError(
            f"layer {layer} has no similarities; expected one of {sorted({int(v) for v in similarity['layer']})}"
        )
    both = pd.concat([own, own.rename(columns={"expert_i": "expert_j", "expert_j": "expert_i"})])
    both = both[both["expert_i"] != both["expert_j"]].drop_duplicates(["expert_i", "expert_j"])
    note, experts = "", both["expert_i"].nunique()
    if experts > MAX_COLUMNS:
        kept = both.groupby("expert_i")["output_cka"].max().nlargest(MAX_COLUMNS).index
        both = both[both["expert_i"].isin(kept) & both["expert_j"].isin(kept)]
        note = f" ({MAX_COLUMNS} of {experts}, those most alike)"
    data = both.assign(
        value=both["output_cka"],
        expert=both["expert_i"],
        sentence=[
            f"Layer {layer}, experts {row.expert_i} and {row.expert_j}: {_SIMILARITY} {number(row.value)}."
            for row in rows(both.assign(value=both["output_cka"]))
        ],
    )[["layer", "expert", "expert_i", "expert_j", "value", "sentence"]].reset_index(drop=True)
    chart = share_map(
        data,
        x=alt.X("expert_j:O", title=f"expert of layer {layer}{note}", axis=COLUMN_AXIS),
        y=alt.Y("expert_i:O", title="expert", axis=ROW_AXIS),
        title=_SIMILARITY,
    )
    best = own.iloc[int(own["output_cka"].argmax())]
    verdict = (
        f"Most alike in layer {layer}: experts {int(best['expert_i'])} and {int(best['expert_j'])}, "
        f"{_SIMILARITY} {number(float(best['output_cka']))}; the middle pair has "
        f"{number(float(own['output_cka'].median()))}."
    )
    return Figure(
        f"similarity_output_cka_layer_{layer}", f"Experts that are alike in layer {layer}",
        "Which experts do the same work?", verdict, chart, own.reset_index(drop=True),
    )  # fmt: skip


def _effect(layer: int, expert: int, whose: str, row: object, part: str = "expert") -> str:
    delta, low, high = (float(getattr(row, name)) for name in ("delta_nats", "low", "high"))
    if delta != delta:
        return f"Without {part} {expert} of layer {layer}: no{whose} text was measured."
    text = f"Without {part} {expert} of layer {layer} the loss on{whose or ' all'} text changes by {signed(delta)} "
    text += "nats per token"
    if low == low:
        text += f", 95 % interval {signed(low)} to {signed(high)}"
    return text + (": uncertain." if getattr(row, "uncertain", False) else ".")


def _dots(frame: pd.DataFrame, measure: str, title: str) -> alt.LayerChart:
    strongest = frame["delta_nats"].abs().nlargest(_NAMED_POINTS).index
    data = frame.assign(
        value=frame[measure].astype(float),
        name=[f"{layer}:{expert}" for layer, expert in zip(frame["layer"], frame["expert"], strict=True)],
        named=frame.index.isin(_names_apart(frame.loc[strongest], measure)),
        sentence=[
            f"Expert {row.expert} of layer {row.layer}: {measure} {number(float(getattr(row, measure)))}; without it "
            f"the loss changes by {signed(row.delta_nats)} nats per token (95 % interval {signed(row.low)} to "
            f"{signed(row.high)})."
            for row in rows(frame)
        ],
    )[["layer", "expert", "value", "delta_nats", "low", "high", "name", "named", "sentence"]]
    base = alt.Chart(data).encode(
        x=alt.X("value:Q", title=title, scale=alt.Scale(zero=False, padding=16)),
        y=alt.Y("delta_nats:Q", title=f"{_NATS}, square-root scale", scale=alt.Scale(type="sqrt")),
    )
    layers = [_zero_rule()]
    if len(data) <= _INTERVAL_POINTS:
        layers.append(base.mark_rule(color=NEUTRAL, opacity=0.6).encode(y=alt.Y("low:Q"), y2=alt.Y2("high:Q")))
    shades = alt.Color("layer:Q", scale=alt.Scale(range=list(LAYER_SHADES)), title="MoE layer",
                       legend=alt.Legend(format="d", tickMinStep=1, gradientStrokeColor=NEUTRAL))  # fmt: skip
    dots = base.mark_circle(size=60, opacity=0.9).encode(tooltip=alt.Tooltip("sentence:N"), color=shades)
    layers.append(dots.add_params(alt.selection_point(name=CELL, fields=["layer", "expert"])))
    layers.append(
        base.transform_filter("datum.named")
        .mark_text(align="left", dx=7, dy=-6, fontSize=11)
        .encode(text=alt.Text("name:N"))
    )
    return layered(layers, data, 360)


def _names_apart(named: pd.DataFrame, measure: str) -> list[Any]:
    """The experts to name: among those whose names would overlap, only the first."""
    place = pd.DataFrame({"x": named[measure].astype(float), "y": named["delta_nats"]})
    place = (place - place.min()) / (place.max() - place.min()).replace(0, 1)
    kept: list[Any] = []
    for label, x, y in zip(named.index, place["x"], place["y"], strict=True):
        if all(abs(x - place["x"][k]) > 0.08 or abs(y - place["y"][k]) > 0.06 for k in kept):
            kept.append(label)
    return kept


def _grid(frame: pd.DataFrame, measure: str, title: str) -> alt.LayerChart:
    """Experts counted in 40 x 30 cells."""
    counts, x, y = np.histogram2d(frame[measure], frame["delta_nats"], bins=(40, 30))
    i, j = np.nonzero(counts)
    data = pd.DataFrame({"x": x[i], "x2": x[i + 1], "y": y[j], "y2": y[j + 1], "experts": counts[i, j].astype(int)})
    data["sentence"] = [
        f"{row.experts} of {len(frame):,} experts ({percent(row.experts / len(frame))}): {measure} {number(row.x)} to "
        f"{number(row.x2)}, change of loss {signed(row.y)} to {signed(row.y2)} nats per token."
        for row in rows(data)
    ]
    cells = alt.Chart(data).mark_rect().encode(
        x=alt.X("x:Q", title=title, scale=alt.Scale(zero=False)), x2=alt.X2("x2:Q"),
        y=alt.Y("y:Q", title=_NATS, scale=alt.Scale(zero=False)), y2=alt.Y2("y2:Q"),
        color=alt.Color("experts:Q", title="experts", scale=alt.Scale(type="log", range=["#f0c48f", "#8a3d02"])),
        tooltip=alt.Tooltip("sentence:N"),
    )  # fmt: skip
    return layered([cells, _zero_rule()], data, 360)


def _zero_rule() -> alt.Chart:
    rule: alt.Chart = (
        alt.Chart(pd.DataFrame({"delta_nats": [0.0]}))
        .mark_rule(strokeDash=[5, 4], color=HEAT)
        .encode(y=alt.Y("delta_nats:Q"))
    )
    return rule
