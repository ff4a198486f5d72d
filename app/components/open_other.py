"""Open something else than a run: the field in the side bar for a trace or a model, and the upload of a trace."""

from __future__ import annotations

import hashlib
import re
import tempfile
from pathlib import Path

import streamlit as st

from app import loaders, state
from app.components.page import errors_as_boxes, plain
from moe_core.errors import MoescopeError, UsageError
from moe_core.files import user_path
from moe_core.inference.subjects import OPENED, Opened, RoutingFile
from moe_core.program import program
from moe_core.routing.measures.health import extent_words
from moe_core.words import short_count

# Session keys: the path field, the upload, what of it was opened last.
PATH, UPLOAD, TAKEN = "open_path", "open_upload", "open_taken"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_FOLDER = tempfile.TemporaryDirectory(prefix="moescope-uploads-")  # goes with the server


def open_field() -> None:
    """A button that unfolds the field; what is opened becomes the choice of the side bar."""
    with st.popover("Open a trace or a model", icon=":material/folder_open:", key="open_other", width="stretch"):
        st.text_input(
            "Path on this computer",
            key=PATH,
            placeholder="/home/me/text.parquet",
            help=f"A trace (.parquet, from `{program()} trace --out` or `{program()} convert --to`), the folder "
            "of a model of the transformers library, or the name of one.",
        )
        pressed = st.button("Open", key="open_button", type="primary", icon=":material/folder_open:")
        upload = st.file_uploader("Or upload a trace", type=["parquet"], key=UPLOAD)
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
    """Open the trace or the model at this path, or the model of this name. Raises MoescopeError, in one line."""
    path = given.strip()
    if not path:
        raise UsageError("no path is given; expected a trace (.parquet) or the folder of a model")
    place = user_path(path)
    if place.is_file() or place.suffix.lower() in (".parquet", ".pq"):
        return OPENED.open_file(path)
    if not place.exists() and not _HUB_NAME.fullmatch(path):
        raise UsageError(f"there is nothing at {path!r}; expected a trace (.parquet) or the folder of a model")
    model = OPENED.open_model(path)
    try:
        loaders.language_model(model)
    except MoescopeError:
        OPENED.close(model.name)
        raise
    return model


def open_upload(name: str, content: bytes) -> Opened:
    """Keep the upload until the server ends, and open it; the browser's `name` is shown only, never used as a path."""
    path = Path(_FOLDER.name) / f"{hashlib.sha256(content).hexdigest()[:32]}.parquet"
    if not path.exists():
        path.write_bytes(content)
    return OPENED.open_file(path, shown=Path(name).name)


def describe_opened(opened: Opened) -> None:
    """What it is and how much, and a button that takes it off the list."""
    is_file = isinstance(opened, RoutingFile)
    kind = opened.name.partition(" ")[0]
    where = str(opened.opened) if isinstance(opened, RoutingFile) else opened.where
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.badge(kind, color="violet", help=plain(where),
                 icon=":material/draft:" if is_file else ":material/memory:")  # fmt: skip
        st.button("Close", key="close_opened", type="tertiary", icon=":material/close:", on_click=OPENED.close,
                  args=(opened.name,), help="Take it off the list; the files stay.")  # fmt: skip
    with errors_as_boxes("It cannot be read"):
        st.caption(plain(_facts_of_opened(opened)))


def _facts_of_opened(opened: Opened) -> str:
    if isinstance(opened, RoutingFile):
        measured = loaders.trace(opened)
        return f"{measured.get(extent_words)}, from {measured.trace.source or 'an unnamed model'}"
    model = loaders.language_model(opened)
    weights = next(model.model.parameters())
    size = short_count(sum(parameter.numel() for parameter in model.model.parameters()))
    return f"{size} parameters, {str(weights.dtype).removeprefix('torch.')} on {weights.device.type}"
