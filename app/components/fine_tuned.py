"""Base against fine-tuned: two models of the transformers library, read with the same text and then compared."""

from __future__ import annotations

import streamlit as st

from app import loaders, state
from app.components.comparison_sides import ONE_MODEL_NEXT
from app.components.page import error_box
from app.components.progress import progress_bar
from moe_core.errors import MoescopeError, UsageError
from moe_core.inference.subjects import OPENED, ForeignModel, remember_model

BASE, TUNED = "fine_tuned_base", "fine_tuned_copy"


def fine_tuned_field() -> None:
    """A button that unfolds the two fields; once both have read the text, the page compares them."""
    with st.popover("Base against fine-tuned", icon=":material/difference:", key="fine_tuned"):
        st.markdown(
            "A fine-tuned model begins as its base: expert 3 of one is expert 3 of the other. Both read the same "
            "made-up text of four domains. You see how many choices changed, and whether the experts divide the work "
            "otherwise, each against what chance alone does."
        )
        base = st.text_input("Base model: folder or name", key=BASE, placeholder="/home/me/base")
        tuned = st.text_input("Fine-tuned model: folder or name", key=TUNED, placeholder="/home/me/tuned")
        if not st.button("Compare the two", key="fine_tuned_start", type="primary", icon=":material/play_arrow:"):
            return
        try:
            first, second = _read(base.strip(), "base"), _read(tuned.strip(), "fine-tuned")
            if first.name == second.name:
                raise UsageError(f"{base!r} and {tuned!r} are one model; expected a model and its fine-tuned copy")
        except MoescopeError as error:
            error_box(error, title="They were not compared")
            return
    st.session_state[ONE_MODEL_NEXT] = True
    state.open_run(first.name)
    state.compare_with(second.name)
    st.rerun()


def _read(where: str, what: str) -> ForeignModel:
    """Open it and send the text through it; what cannot be read is not offered. Raises MoescopeError."""
    if not where:
        raise UsageError(f"no {what} model is given; expected its folder, or its name on the hub")
    model = OPENED.open_model(where)
    try:
        with progress_bar(f"Sending text through the {what} model") as bar:
            loaders.model_routing(model, bar)
    except MoescopeError:
        OPENED.close(model.name)
        raise
    remember_model(model)
    return model
