"""What is being opened: its progress in the side bar, with the time left, and what becomes of it in the end."""

from __future__ import annotations

from typing import NoReturn

import streamlit as st

from app import state
from app.components.page import plain
from app.components.progress import stage_text
from moe_core.errors import MoescopeError
from moe_core.inference.opening_job import OpeningJob, running_jobs
from moe_core.inference.subjects import Opened

# Session keys: the job that this session waits for; why the last one failed; whether the box is open; what to do with
# it when it is drawn next; how often it was emptied. And those of its widgets, see `fresh`: the path, the options.
JOB, ERROR, BOX, NEXT, COUNT = "open_job", "open_error", "open_other", "open_next", "open_count"
PATH, OPTIONS = "open_path", "open_options"
_EMPTY, _UNFOLD, _CLOSE = "empty", "unfold", "close"
FIELDS = {
    "--format": "Format",
    "--num-experts": "Experts a layer",
    "--top-k": "Experts a token",
    "--layers": "Layers",
    "--tokenizer": "Tokenizer",
    "--token-ids": "Token ids",
}
"""The options of the command line, as which messages name them, by the labels of the fields that stand for them."""
KEYS = {option: f"open_{option.strip('-').replace('-', '_')}" for option in FIELDS}
SOON_SECONDS = 1.0
"""What is opened within it needs no progress bar."""
_REDRAW_SECONDS = 0.5


def await_job(job: OpeningJob) -> NoReturn:
    """Make its result this session's choice once it is there; draw the page anew."""
    st.session_state.pop(ERROR, None)
    st.session_state[JOB] = job
    if not job.wait(SOON_SECONDS):
        st.session_state[NEXT] = _CLOSE  # it would lie over the progress
    st.rerun()


def choose(opened: Opened) -> NoReturn:
    """Make it the choice of the side bar, at once."""
    state.open_run(opened.name)
    st.session_state[NEXT] = _EMPTY
    st.rerun()


def keep_error(error: MoescopeError) -> None:
    """Show it in the box when that is drawn next, with the fields that it asks for unfolded."""
    st.session_state[ERROR] = error
    st.session_state[NEXT] = _UNFOLD


def finish_opening() -> None:
    """Before the side bar is drawn: choose what has been opened and empty the box, or show there what went wrong."""
    job: OpeningJob | None = st.session_state.get(JOB)
    if job is not None and not job.is_running:
        del st.session_state[JOB]
        if job.result is not None:
            state.open_run(job.result.name)
            st.session_state[NEXT] = _EMPTY
        elif job.error is not None:
            keep_error(job.error)
        else:
            st.toast(f"{plain(job.label)} was not opened: it was cancelled.", icon=":material/cancel:")
    what = st.session_state.pop(NEXT, None)
    if what == _EMPTY:
        _empty_box()
    elif what == _UNFOLD:
        st.session_state[BOX] = True
        if any(option in str(st.session_state.get(ERROR)) for option in FIELDS):
            st.session_state[fresh(OPTIONS)] = True
    elif what == _CLOSE:
        st.session_state[BOX] = False


def _empty_box() -> None:
    """Close it, and leave nothing in it that would be said of the next file too."""
    st.session_state[BOX] = False
    st.session_state[COUNT] = st.session_state.get(COUNT, 0) + 1
    st.session_state.pop(ERROR, None)


def fresh(key: str) -> str:
    """The key of a widget in the box that another one replaces once the box was emptied: a browser keeps what was typed
    or uploaded, or unfolded, for as long as the key is the same."""
    return f"{key}_{st.session_state.get(COUNT, 0)}"


def in_words(message: str) -> str:
    """A message with the box's fields in place of the command line's options."""
    for option, label in FIELDS.items():
        message = message.replace(option, f"“{label}”")
    return message


def show_running() -> None:
    """A bar for everything that is being opened on this server, whoever asked for it; nothing where nothing is."""
    if running_jobs():
        _bars()


@st.fragment(run_every=_REDRAW_SECONDS)
def _bars() -> None:
    jobs = running_jobs()
    own: OpeningJob | None = st.session_state.get(JOB)
    if not jobs or (own is not None and not own.is_running):
        st.rerun()
    for job in jobs:
        at = job.reached()
        st.progress(at.share, text=plain(stage_text(f"Opening {job.label}: {at.stage}", at.seconds_left)))
        st.button("Cancel", key=f"cancel_{id(job)}", icon=":material/close:", type="tertiary", on_click=job.cancel,
                  help="Stop reading it; nothing of it is kept.")  # fmt: skip
