"""The four figures of Overview, each beside its chance or target."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from app import loaders
from app.components.figure import term_help
from app.components.page import plain
from app.components.watched_run import loss_metric
from moe_core.inference.subjects import Subject
from moe_core.routing.measured import Measured
from moe_core.routing.measures.domains import NO_SOURCES, ONE_DOMAIN
from moe_core.routing.measures.health import IMBALANCE_LIMIT, Health
from moe_core.routing.measures.movers import unit_of
from moe_core.runs import RunFolder, RunSummary
from moe_core.words import number, short_count

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator


def key_figures(subject: Subject, measured: Measured, verdict: Health, nmi: pd.DataFrame) -> None:
    """Loss or amount of text, busiest expert, dead experts, and what experts know of domains (frame of
    baselines.domain_nmi)."""
    # In a narrow window they stand in two rows: four columns would cut every number.
    first = busiest = dead = domains = st.container(horizontal=True)
    if not isinstance(subject, RunFolder):
        _amount(first, measured)
    elif subject.is_watched():
        loss_metric(first, subject, border=True)
    else:
        _loss(first, subject)
    _load(busiest, dead, measured, verdict)
    _domains(domains, nmi)


def _loss(place: DeltaGenerator, run: RunFolder) -> None:
    summary = next((item for item in loaders.runs() if item.name == run.name), RunSummary(run.name, "broken"))
    scoring = summary.state == "scoring"
    nats, unigram = None if scoring else summary.unseen_nats, summary.unigram_nats
    place.metric(
        "Loss on unseen text",
        "scoring" if scoring else "–" if nats is None else f"{nats:.2f} nats",
        None if nats is None or unigram is None else f"{nats - unigram:+.2f}",
        delta_color="inverse",
        delta_description=None if unigram is None else f"vs guessing, {unigram:.2f}",
        help=term_help("loss"),
        border=True,
        height="stretch",
    )


def _amount(place: DeltaGenerator, measured: Measured) -> None:
    trace = measured.trace
    of = f"{'domain' if len(trace.domains) == 1 else 'domains'}: {', '.join(trace.domains[:3])}"
    more = ", ..." if len(trace.domains) > 3 else ""
    place.metric(
        f"{unit_of(trace).capitalize()}s",
        short_count(trace.num_tokens),
        delta_description=plain(f"{len(trace.domains)} {of}{more}"),
        border=True,
        height="stretch",
    )


def _load(busiest: DeltaGenerator, dead: DeltaGenerator, measured: Measured, verdict: Health) -> None:
    worst, is_certain = verdict.worst, verdict.worst["varies_by"] != ""
    enough = f"up to {IMBALANCE_LIMIT:.0f} is fine" if verdict.state != "too little text" else "too little text to tell"
    interval = f"95 %: {number(worst['load_low'])} to {number(worst['load_high'])}; {enough}"
    busiest.metric(
        "Busiest expert",
        "–" if isnan(worst["load_imbalance"]) else f"{number(worst['load_imbalance'])} × mean",
        delta_description=interval if is_certain else f"as counted; {IMBALANCE_LIMIT:.0f} is uneven",
        help=term_help("load imbalance"),
        border=True,
        height="stretch",
    )
    experts = measured.trace.num_layers * measured.trace.num_experts
    if is_certain:
        shown = verdict.surely_dead
        about = f"{verdict.unseen} not seen in this little text" if verdict.unseen else "0 is the target"
    else:
        shown, about = verdict.surely_dead + verdict.unseen, "never chosen; 0 is the target"
    dead.metric(
        "Dead experts",
        f"{shown:,} of {experts:,}",
        delta_description=about,
        help=term_help("dead expert"),
        border=True,
        height="stretch",
    )


def _domains(place: DeltaGenerator, nmi: pd.DataFrame) -> None:
    known = nmi.dropna(subset=["p_value"])
    best = known.iloc[int(known["effect"].argmax())] if len(known) else None
    reasons = {ONE_DOMAIN: "one domain only", NO_SOURCES: "takes sources that are told apart"}
    untested = reasons.get(str(nmi["verdict"].iloc[0]), "too little text to tell")
    place.metric(
        "Experts know domains",
        "–" if best is None else f"NMI {number(best['estimate'])}",
        delta_description=untested
        if best is None
        else f"as counted {number(best['nmi'])}, by chance {number(best['null_mean'])}",
        help=term_help("NMI"),
        border=True,
        height="stretch",
    )
