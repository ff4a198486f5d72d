"""A run that someone else's loop trains: its figures as they are counted. It cannot be stopped or resumed from here."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import loaders
from app.components.figure import term_help
from moe_core.routing.measures.health import IMBALANCE_LIMIT
from moe_core.runs import RunFolder, RunStatus
from moe_core.words import duration, number, percent, short_count

NO_LOSS = "given by log.record(loss=...)"


def watched_figures(run: RunFolder, status: RunStatus) -> None:
    """Four figures of the newest reading, each with what to hold it against."""
    loads, train = loaders.metrics(run, "load"), loaders.metrics(run, "train")
    last = loads[loads["step"] == loads["step"].max()] if len(loads) else loads
    loss, balance, dead, speed = st.columns(4)
    losses = train["loss"].dropna() if len(train) else pd.Series(dtype=float)
    loss.metric(
        "Loss while training",
        f"{losses.iloc[-1]:.2f} nats" if len(losses) else "–",
        delta_description="of the text it learns from" if len(losses) else NO_LOSS,
        help=term_help("loss"),
    )
    balance.metric(
        "Busiest expert",
        "–" if last.empty else f"{number(last['load_imbalance'].max())} × mean",
        delta_description=f"1 is even, {IMBALANCE_LIMIT:.0f} still fine",
        help=term_help("load imbalance"),
    )
    dead.metric(
        "Dead experts",
        "–" if last.empty else f"{int(last['dead_experts'].sum()):,} of {sum(map(len, last['expert_load'])):,}",
        delta_description=_certainty(last),
        help=term_help("dead expert"),
    )
    speed.metric(
        "Speed",
        "–" if not status.tokens_per_second else f"{status.tokens_per_second:,.0f} tokens/s",
        delta_description=f"{short_count(status.tokens)} tokens in {duration(status.elapsed_seconds)}",
    )


def _certainty(last: pd.DataFrame) -> str:
    """How sure the routers are, and what was dropped, in the newest reading."""
    if last.empty or last["router_entropy"].isna().all():
        return "0 is the target"
    mean = f"router entropy {percent(float(last['router_entropy'].mean()))}"
    dropped = last["dropped_fraction"].max()
    return f"{mean}, {percent(float(dropped))} dropped" if dropped > 0 else mean
