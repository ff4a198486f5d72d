"""The probe's snapshots as a film: the same text at every evaluation, coloured by the experts of that step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import streamlit as st

from app.components.token_view import view_payload
from moe_core.figures.tokens import snapshot_arrays
from moe_core.runs import RunFolder

if TYPE_CHECKING:
    from moe_core.routing.trace.trace import RoutingTrace

WATCH_SECONDS = 5.0


@st.fragment(run_every=WATCH_SECONDS)
def watch_snapshots(name: str, known: int) -> None:
    """Draw nothing; show the page anew once a run that trains has a snapshot more than `known`."""
    if len(RunFolder(name).probe_steps()) != known:
        st.rerun()


def snapshot_payload(trace: RoutingTrace, series: str) -> dict[str, Any]:
    """What the token view is sent for one snapshot; one `series` for all of a run, so that a selected token stays."""
    return view_payload(snapshot_arrays(trace), series=series)
