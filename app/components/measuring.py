"""A measurement in the background: its bar with the time left, its end, and a button to cancel it."""

from __future__ import annotations

import streamlit as st

from app.components.page import error_box, plain
from app.components.progress import stage_text
from moe_core.inference.measuring_job import MeasuringJob, forget_measuring, measuring_job

SOON_SECONDS = 1.0
"""What is measured within it needs no bar."""
_REDRAW_SECONDS = 0.7


def show_measuring(key: str, failed: str) -> bool:
    """Whether the job under this key runs: then its bar is drawn, in this browser and any other that looks here. The
    page is drawn anew when it ends; what ended it too early is told once, under the title `failed`."""
    job = measuring_job(key)
    if job is None:
        return False
    if job.is_running:
        _bar(key)
        return True
    forget_measuring(key)
    if job.error is not None:
        error_box(job.error, title=failed)
    elif job.was_cancelled:
        st.toast(f"{plain(job.label)}: cancelled.", icon=":material/cancel:")
    return False


@st.fragment(run_every=_REDRAW_SECONDS)
def _bar(key: str) -> None:
    job: MeasuringJob | None = measuring_job(key)
    if job is None or not job.is_running:
        st.rerun()
    at = job.reached()
    st.progress(at.share, text=plain(stage_text(f"{job.label}: {at.stage}", at.seconds_left)))
    st.button("Cancel", key=f"cancel_{key}", icon=":material/close:", type="tertiary", on_click=job.cancel,
              help="What was measured of single experts is kept.")  # fmt: skip
