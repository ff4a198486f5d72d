"""Open something else than a run: the field in the side bar for a trace in a file, and its upload."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import streamlit as st

from app import loaders, state
from app.components.page import errors_as_boxes, plain
from app.subjects import OPENED, Opened
from moe_core.errors import UsageError

# Session keys: the path field, the upload, what of it was opened last.
PATH, UPLOAD, TAKEN = "open_path", "open_upload", "open_taken"
_FOLDER = tempfile.TemporaryDirectory(prefix="moescope-uploads-")  # goes with the server


def open_field() -> None:
    """A button that unfolds the field; what is opened becomes the choice of the side bar."""
    with st.popover("Open a trace", icon=":material/folder_open:", key="open_other", width="stretch"):
        st.text_input(
            "Path of a trace on this computer",
            key=PATH,
            placeholder="/home/me/text.parquet",
            help="Written by `python main.py trace --out` or `python main.py convert --to`.",
        )
        pressed = st.button("Open", key="open_button", type="primary", icon=":material/folder_open:")
        upload = st.file_uploader("Or upload one", type=["parquet"], key=UPLOAD)
        with errors_as_boxes("It was not opened"):
            if pressed:
                choose(open_path(str(st.session_state.get(PATH) or "")))
            elif upload is not None and st.session_state.get(TAKEN) != upload.file_id:
                st.session_state[TAKEN] = upload.file_id  # the uploader keeps the file: once is enough
                choose(open_upload(upload.name, upload.getvalue()))


def choose(opened: Opened) -> None:
    """Make it the choice of the side bar, at once."""
    state.open_run(opened.name)
    st.rerun()


def open_path(given: str) -> Opened:
    """Open what is at this path. Raises UsageError or TraceError, in one line."""
    path = given.strip()
    if not path:
        raise UsageError("no path is given; expected a trace, a .parquet file")
    if "\0" in path:
        raise UsageError(f"path {path!r} holds a NUL character; expected the path of a .parquet file")
    return OPENED.open_trace(path)


def open_upload(name: str, content: bytes) -> Opened:
    """Keep the upload until the server ends, and open it; the browser's `name` is shown only, never used as a path."""
    path = Path(_FOLDER.name) / f"{hashlib.sha256(content).hexdigest()[:32]}.parquet"
    if not path.exists():
        path.write_bytes(content)
    return OPENED.open_trace(path, shown=Path(name).name)


def describe_opened(opened: Opened) -> None:
    """What it is and how much, and a button that takes it off the list."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.badge("trace", color="violet", icon=":material/draft:", help=plain(str(opened.path)))
        st.button("Close", key="close_opened", type="tertiary", icon=":material/close:", on_click=OPENED.close,
                  args=(opened.name,), help="Take it off the list; the file stays.")  # fmt: skip
    with errors_as_boxes("It cannot be read"):
        trace = loaders.trace(opened).trace
        st.caption(plain(f"{trace.num_tokens:,} tokens of {trace.source or 'an unnamed model'}"))
