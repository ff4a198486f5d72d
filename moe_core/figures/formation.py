"""When did each expert become what it is? Experts x snapshots of training."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from moe_core.errors import UsageError
from moe_core.figures.figure import Figure
from moe_core.figures.labels import rows
from moe_core.figures.layout import MAX_COLUMNS
from moe_core.figures.maps import share_map
from moe_core.routing.measures.formation import formed_at
from moe_core.words import percent

_NAMED = 3
_FORMED = "holds at least half of its last tokens, beyond those that its load alone brings, and keeps them"


def formation_figure(formation: pd.DataFrame, layer: int) -> Figure:
    """When did each expert of a layer become what it is? Frame of metrics.formation; UsageError for another layer."""
    frame = formation[formation["layer"] == layer].reset_index(drop=True)
    if frame.empty:
        raise UsageError(f"layer {layer} has no snapshots; expected one of {sorted(set(formation['layer']))}")
    formed = formed_at(frame)
    return Figure(
        f"formation_layer_{layer}", f"When the experts of layer {layer} became what they are",
        "When did each expert become what it is?", formation_verdict(formation, layer), formation_map(frame, formed),
        frame.merge(formed[["expert", "step"]].rename(columns={"step": "formed_at"}), on="expert"),
    )  # fmt: skip


def formation_map(frame: pd.DataFrame, formed: pd.DataFrame) -> alt.LayerChart:
    """Snapshots x experts of one layer: how much of what an expert takes in the end it took already, beyond chance.

    `frame` is one layer of metrics.formation, `formed` metrics.formed_at of it: experts stand in the order in which
    they were formed. Of more than MAX_COLUMNS experts the busiest are drawn, of more snapshots evenly spaced ones.
    """
    experts = formed.dropna(subset="step").nlargest(MAX_COLUMNS, "tokens", keep="first")
    order = [int(expert) for expert in experts.sort_values(["step", "expert"])["expert"]]
    steps = _evenly_spaced(sorted(set(frame["step"])))
    drawn = frame[frame["expert"].isin(order) & frame["step"].isin(steps)]
    note = f" ({MAX_COLUMNS} of {len(formed)}, the busiest)" if len(formed) > MAX_COLUMNS else ""
    sentences = [
        f"At step {row.step:,} expert {row.expert} took {row.tokens:,} tokens, {percent(row.kept)} of its last ones "
        f"among them; by chance {percent(row.chance)}."
        for row in rows(drawn)
    ]
    # Fewer than by chance is no more formed than by chance: the scale is a share, from 0 to 1.
    return share_map(
        drawn.assign(value=drawn["agreement"].clip(lower=0.0), sentence=sentences),
        x=alt.X("step:O", title="training step", axis=alt.Axis(labelAngle=0, labelOverlap="parity", format=",d")),
        y=alt.Y("expert:O", title=f"expert, the first formed on top{note}", sort=order),
        title="of its last tokens, beyond chance",
    )


def formation_verdict(formation: pd.DataFrame, layer: int) -> str:
    """When the experts of `layer` became what they are, in one sentence; from metrics.formation."""
    frame = formation[formation["layer"] == layer]
    steps = sorted(set(frame["step"]))
    if len(steps) < 2:
        return "There is one snapshot only: when its experts became what they are cannot be told."
    formed = formed_at(frame).dropna(subset="step")
    if formed.empty:
        return f"No expert of layer {layer} has a token at step {steps[-1]:,}."
    half = float(np.sort(formed["step"])[(len(formed) - 1) // 2])
    last = formed[formed["step"] == formed["step"].max()]
    end = float(last["step"].iloc[0])
    if half == steps[-1]:  # the last step agrees with itself, whatever the routing
        still = int((formed["step"] == half).sum())
        when = f"{still} of its {len(formed)} experts still changed before the last snapshot, step {steps[-1]:,}"
    elif end == steps[-1]:
        late = f"{_expert_names(last)} still changed before the last snapshot, step {steps[-1]:,}"
        when = f"half of its experts were formed by step {half:,.0f}, {late}"
    elif half == end:
        when = f"its experts were formed by step {end:,.0f} of {steps[-1]:,}"
    else:
        late = f"{_expert_names(last)} last, at step {end:,.0f}"
        when = f"half of its experts were formed by step {half:,.0f} of {steps[-1]:,}, {late}"
    return f"Layer {layer}: {when}. An expert counts as formed from the step at which it {_FORMED}."


def _expert_names(formed: pd.DataFrame) -> str:
    names = ", ".join(str(expert) for expert in formed["expert"][:_NAMED])
    more = f" and {len(formed) - _NAMED} more" if len(formed) > _NAMED else ""
    return f"expert{'s' if len(formed) > 1 else ''} {names}{more}"


def _evenly_spaced(steps: list[int]) -> list[int]:
    """At most MAX_COLUMNS of `steps`, evenly spaced, the first and the last among them."""
    if len(steps) <= MAX_COLUMNS:
        return steps
    return [steps[round(i)] for i in np.linspace(0, len(steps) - 1, MAX_COLUMNS)]
