"""Open something else than a run: the box in the side bar for any file of routing, or for a model."""

from __future__ import annotations

import re
from typing import NoReturn

import streamlit as st

from app import loaders
from app.components.open_progress import (
    BOX,
    ERROR,
    FIELDS,
    KEYS,
    OPTIONS,
    PATH,
    await_job,
    choose,
    fresh,
    in_words,
    keep_error,
)
from app.components.page import error_box, plain
from app.components.recent_list import pick_recent
from moe_core.errors import MoescopeError, UsageError
from moe_core.files import user_path
from moe_core.inference.kept_files import Said
from moe_core.inference.opening_job import OpeningJob, start_opening
from moe_core.inference.recently_opened import Recent, recently_opened
from moe_core.inference.subjects import OPENED, ForeignModel, remember_model
from moe_core.inference.uploaded import Upload, open_uploads
from moe_core.recording_formats import RECORDING_FORMATS
from moe_core.routing.recordings.pieces import layers_of_text

UPLOAD_MEGABYTES = 200
"""Of one file; an upload passes through the server's memory. Larger files are opened by their path."""
TAKEN = "open_taken"
"""Session key: the uploads that were opened last, by the names that Streamlit gives them."""
EXPECTED = "a trace, counts, a recording or the folder of its ranks, or the folder of a model"
FILE_ENDINGS = (
    *(".parquet", ".pq", ".json", ".jsonl", ".npy", ".npz", ".csv", ".txt", ".log", ".pt", ".pth", ".pkl", ".gguf"),
)
"""No model of a library has such a name."""
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def open_field() -> None:
    """A button that unfolds the box; what is opened becomes the choice of the side bar."""
    with st.popover("Open a file or a model", icon=":material/folder_open:", key=BOX, width="stretch",
                    on_change="rerun") as box:  # fmt: skip
        if (wrong := st.session_state.get(ERROR)) is not None:
            error_box(UsageError(in_words(str(wrong))), title="It was not opened")
        st.text_input(
            "Path on this computer", key=fresh(PATH), placeholder="/home/me/imatrix.gguf", help=_about_paths()
        )
        uploads = st.file_uploader("Or upload files", accept_multiple_files=True, max_upload_size=UPLOAD_MEGABYTES,
                                   key=fresh("open_upload"),
                                   help="One file, or all the files that the ranks of one run wrote. Of larger ones "
                                   "give the path.")  # fmt: skip
        _option_fields()
        pressed = st.button("Open", key="open_button", type="primary", icon=":material/folder_open:")
        recent = pick_recent() if box.open else None
    if not box.open:
        st.session_state.pop(ERROR, None)
    ids = [upload.file_id for upload in uploads]
    path = str(st.session_state.get(fresh(PATH)) or "").strip()
    try:
        if recent is not None:
            show(open_again(recent))
        elif pressed and (path or not uploads):
            show(open_path(path, _said()))
        elif uploads and (pressed or st.session_state.get(TAKEN) != ids):
            st.session_state[TAKEN] = ids  # the uploader keeps the files: once is enough
            show(open_uploads(OPENED, [Upload(upload.name, upload.getvalue()) for upload in uploads], _said()))
    except MoescopeError as error:
        keep_error(error)
        st.rerun()


def offer_again(name: str) -> None:
    """A button for what a link named and is not open any more, if it was opened lately."""
    found = next((one for one in recently_opened()[0] if f"{one.kind} {one.shown}" == name and not one.is_gone()), None)
    if found is None:
        return
    if st.button("Open it again", key="open_missing", icon=":material/refresh:", help=plain(found.place)):
        try:
            show(open_again(found))
        except MoescopeError as error:
            keep_error(error)
            st.rerun()


def show(opened: OpeningJob | ForeignModel) -> NoReturn:
    """Make it the choice of the side bar, now or once it has been read."""
    if isinstance(opened, OpeningJob):
        await_job(opened)
    choose(opened)


def _about_paths() -> str:
    titles = dict.fromkeys(one.title for one in RECORDING_FORMATS)
    return (
        "A trace or counts of Moescope; a recording, or the folder or a pattern (rank\\*.jsonl) of the files that "
        f"ranks wrote, of {', '.join(plain(title) for title in titles)}; the folder of a model of the transformers "
        "library, or the name of one."
    )


def _option_fields() -> None:
    """What a recording may not say itself; empty ones say nothing."""
    with st.expander("What the file does not say", key=fresh(OPTIONS), on_change="rerun", icon=":material/tune:"):
        titles = {one.name: one.title for one in RECORDING_FORMATS}
        left, right = st.columns(2)
        left.selectbox(FIELDS["--format"], list(titles), index=None, key=fresh(KEYS["--format"]),
                       placeholder="as it looks", format_func=titles.__getitem__)  # fmt: skip
        right.text_input(FIELDS["--layers"], key=fresh(KEYS["--layers"]), placeholder="3-47", max_chars=1000,
                         help="Numbers of the recorded layers; if fewer are named than were recorded, only these are "
                         "kept.")  # fmt: skip
        left.number_input(FIELDS["--num-experts"], 2, 32_767, None, key=fresh(KEYS["--num-experts"]))
        right.number_input(FIELDS["--top-k"], 1, 32_767, None, key=fresh(KEYS["--top-k"]))
        left.text_input(FIELDS["--tokenizer"], key=fresh(KEYS["--tokenizer"]), placeholder="/home/me/tokenizer.json",
                        help="Path of the model's tokenizer.json, for the tokens' texts.")  # fmt: skip
        right.text_input(FIELDS["--token-ids"], key=fresh(KEYS["--token-ids"]), placeholder="/home/me/ids.npy",
                         help="Path of a file of the token ids, if the recording has none: .npy, .json or .csv."
        )  # fmt: skip


def _said() -> Said:
    """What the fields say. Raises UsageError."""
    given = {option: st.session_state.get(fresh(key)) for option, key in KEYS.items()}
    text = {option: str(given[option] or "").strip() or None for option in ("--layers", "--tokenizer", "--token-ids")}
    return Said(
        format=given["--format"] or "auto",
        num_experts=given["--num-experts"],
        top_k=given["--top-k"],
        layers=None if text["--layers"] is None else layers_of_text(text["--layers"]),
        token_ids=None if text["--token-ids"] is None else str(user_path(text["--token-ids"]).resolve()),
        tokenizer=None if text["--tokenizer"] is None else str(user_path(text["--tokenizer"]).resolve()),
    )


def open_path(path: str, said: Said) -> OpeningJob | ForeignModel:
    """Start to open the file at this path, or open the model there or of this name. Raises MoescopeError, in one
    line."""
    if not path:
        raise UsageError(f"no path is given; expected {EXPECTED}")
    place = user_path(path)
    is_model = place.is_dir() and ((place / "config.json").is_file() or any(place.glob("*.safetensors")))
    if not is_model and (place.exists() or any(mark in path for mark in "*?[")):
        file = place.resolve()
        return start_opening(
            repr((file, said)), file.name, lambda progress: OPENED.open_file(file, said=said, progress=progress)
        )
    if not is_model and (place.suffix.lower() in FILE_ENDINGS or not _HUB_NAME.fullmatch(path)):
        raise UsageError(f"there is nothing at {path!r}; expected {EXPECTED}")
    return load_model(OPENED.open_model(path))


def open_again(one: Recent) -> OpeningJob | ForeignModel:
    """The same of what was opened lately. Raises MoescopeError."""
    if one.kind == "model":
        return load_model(OPENED.open_model(one.place, device=one.device, dtype=one.dtype))
    return start_opening(
        repr(one),
        one.shown,
        lambda progress: OPENED.open_file(
            one.place, one.shown, said=one.said, is_upload=one.is_upload, progress=progress
        ),
    )


def load_model(model: ForeignModel) -> ForeignModel:
    """The model, once it is known to work. Raises MoescopeError."""
    try:
        loaders.language_model(model)
    except MoescopeError:
        OPENED.close(model.name)
        raise
    remember_model(model)
    return model
