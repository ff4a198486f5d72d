"""Figures of domains: which experts prefer which kind of text, and how much an expert knows about it."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from moe_core.errors import UsageError
from moe_core.figures.layout import COLUMN_AXIS, MAX_COLUMNS
from moe_core.figures.maps import lift_map
from moe_core.figures.measures import chance_bars
from moe_core.figures.words import rows, sentence
from moe_core.routing.verdicts import domain_cell, p_value, percent


def domain_map(specialization: pd.DataFrame, layer: int) -> alt.LayerChart:
    """Domains x experts of one layer: how often a domain's tokens choose an expert, in multiples of its even share.

    `specialization` has the columns of metrics.domain_specialization. The scale is that of all lift maps, so layers can
    be compared; a cell whose interval holds 1 is faded. Of more than MAX_COLUMNS experts, those with the clearest
    preference are drawn, in their order.
    """
    frame = specialization[specialization["layer"] == layer]
    if frame.empty:
        raise UsageError(f"layer {layer} has no domains; expected one of {sorted(set(specialization['layer']))}")
    note = ""
    if frame["expert"].nunique() > MAX_COLUMNS:
        note = f", the {MAX_COLUMNS} with the clearest preference of {frame['expert'].nunique()}"
        frame = frame[frame["expert"].isin(_clearest(frame))]
    frame = frame.assign(sentence=[sentence(domain_cell(row._asdict())) for row in rows(frame)])
    return lift_map(
        frame,
        x=alt.X("expert:O", title=f"expert of layer {layer}{note}", axis=COLUMN_AXIS),
        y=alt.Y("domain:N", title="domain", sort=list(dict.fromkeys(specialization["domain"]))),
    )


def domain_nmi_by_layer(nmi: pd.DataFrame) -> alt.LayerChart:
    """How much one expert choice tells about the token's domain, per layer, with what chance reaches.

    `nmi` has the columns of baselines.domain_nmi: layer, nmi, null_mean, null_p99, p_value, verdict. The tick is the
    99th percentile over shuffled domain labels: a bar that does not reach beyond it is not distinguishable from chance.
    """
    title = "NMI of expert and domain (0 = tells nothing, 1 = tells the domain)"
    return chance_bars(nmi, "nmi", title=title, sentences=[_knowledge(row) for row in rows(nmi)])


def _clearest(frame: pd.DataFrame) -> list[int]:
    certain = frame[~frame["uncertain"].astype(bool)]
    distance = (certain["lift"] - 1).abs().groupby(certain["expert"]).max()
    ranked = list(distance.sort_values(ascending=False).index)
    rest = [expert for expert in frame["expert"].unique() if expert not in set(ranked)]
    return [int(expert) for expert in (ranked + rest)[:MAX_COLUMNS]]


def _knowledge(row: Any) -> str:
    if pd.isna(row.nmi) or pd.isna(row.null_p99):
        return f"Layer {row.layer}: {row.verdict}."
    return (
        f"Layer {row.layer}: one expert choice carries {percent(row.nmi)} of what there is to know about the token's "
        f"domain; by chance at most {percent(row.null_p99)} (99th percentile of shuffled labels, "
        f"{p_value(row.p_adjusted)}): {row.verdict}."
    )
