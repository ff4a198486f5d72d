"""A run that someone else's loop trains: its figures as they are counted. It cannot be stopped or resumed from here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from app import loaders
from app.components.counted_film import step_of_counts
from app.components.figure import show_figure, term_help
from app.components.page import header
from moe_core.figures.figure import Figure
from moe_core.figures.load import MAX_STEPS, load_over_time_figure
from moe_core.routing.measures.health import IMBALANCE_LIMIT
from moe_core.routing.measures.load import load_by_step
from moe_core.runs import RunFolder, RunStatus
from moe_core.words import duration, number, percent, short_count

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

NO_LOSS = "log.record(loss=...) gives it"
WATCH_SECONDS = 4.0


def watched_figures(run: RunFolder, status: RunStatus) -> None:
    """Four figures of the newest reading, each with what to hold it against."""
    loads = loaders.metrics(run, "load")
    last = loads[loads["step"] == loads["step"].max()] if len(loads) else loads
    loss = balance = dead = speed = st.container(horizontal=True)
    loss_metric(loss, run)
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
        "Tokens a second",  # not beside the number, which would then be cut in a narrow window
        "–" if not status.tokens_per_second else f"{status.tokens_per_second:,.0f}",
        delta_description=f"{short_count(status.tokens)} tokens in {duration(status.elapsed_seconds)}",
    )


def loss_metric(place: DeltaGenerator, run: RunFolder, *, border: bool = False) -> None:
    """The newest loss that the loop recorded, of the text that it learns from."""
    train = loaders.metrics(run, "train")
    losses = train["loss"].dropna() if len(train) else pd.Series(dtype=float)
    place.metric(
        "Loss while training",
        f"{losses.iloc[-1]:.2f} nats" if len(losses) else "–",
        delta_description="of the text it learns from" if len(losses) else NO_LOSS,
        help=term_help("loss"),
        border=border,
        height="stretch" if border else "content",
    )


def watch_counts(name: str) -> None:
    """While the run trains, show the page anew at every reading."""
    if any(item.is_live and item.name == name for item in loaders.runs()):
        st.caption("The run is being trained: what it is now need not be what it will be. The page follows by itself.")
        _rerun_at_next_reading(name, loaders.counts(RunFolder(name)).steps[-1])


@st.fragment(run_every=WATCH_SECONDS)
def _rerun_at_next_reading(name: str, known: int) -> None:
    run = RunFolder(name)
    if run.exists() and loaders.counts(run).steps[-1] != known:
        st.rerun()


def counted_load_figure(run: RunFolder, layer: int) -> Figure:
    """The load of a layer's experts by step; of more than MAX_STEPS readings, neighbouring ones together. Raises
    RunError before the first."""
    return load_over_time_figure(load_by_step(loaders.counts(run).joined(MAX_STEPS).of_layers([layer])), layer)


def counted_film(run: RunFolder, layer: int) -> None:
    """The Time page of a run without a probe text: what the experts took at each reading."""
    counts, over_time = loaders.counts(run), counted_load_figure(run, layer)
    header("When did each expert become what it is?", over_time.verdict)
    watch_counts(run.name)
    show_figure(over_time, key="load_over_time", title="", terms=["expert load", "load imbalance"])
    st.markdown("#### What the experts took at each reading")
    step_of_counts(counts.joined(MAX_STEPS), layer)
    st.caption("Only counts were kept of this run: give watch(...) a probe text to see which tokens an expert takes.")


def _certainty(last: pd.DataFrame) -> str:
    """How sure the routers are, and what was dropped, in the newest reading."""
    if last.empty or last["router_entropy"].isna().all():
        return "0 is the target"
    mean = f"router entropy {percent(float(last['router_entropy'].mean()))}"
    dropped = last["dropped_fraction"].max()
    return f"{mean}, {percent(float(dropped))} dropped" if dropped > 0 else mean
