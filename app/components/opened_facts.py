"""What was opened, in the side bar: what it is, how much of it there is, and how many questions it can answer."""

from __future__ import annotations

import streamlit as st

from app import loaders, state
from app.components.page import errors_as_boxes, plain
from moe_core.inference.subjects import ForeignModel, Opened, RoutingFile
from moe_core.routing.measures.capability import capabilities
from moe_core.routing.measures.health import extent_words
from moe_core.routing.opening import OURS
from moe_core.words import short_count


def describe_opened(opened: Opened) -> None:
    """What it is and how much, and a button that takes it off the list."""
    is_file = isinstance(opened, RoutingFile)
    where = str(opened.opened) if isinstance(opened, RoutingFile) else opened.where
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.badge(opened.name.partition(" ")[0], color="violet", help=plain(where),
                 icon=":material/draft:" if is_file else ":material/memory:")  # fmt: skip
        st.button("Close", key="close_opened", type="tertiary", icon=":material/close:", on_click=state.close,
                  args=(opened.name,), help="Take it off the list; the files stay.")  # fmt: skip
    with errors_as_boxes("It cannot be read"):
        facts = _facts_of_file(opened) if isinstance(opened, RoutingFile) else _facts_of_model(opened)
        st.caption(plain(facts))


def _facts_of_file(opened: RoutingFile) -> str:
    measured = loaders.trace(opened)
    answers = measured.get(capabilities)
    told = sum(one.answer != "no" for one in answers)
    ours = opened.title in OURS.values()
    source = (measured.trace.source if ours else opened.title) or "an unnamed model"
    return f"{measured.get(extent_words)}, from {source}. Answers {told} of {len(answers)} questions, see Overview."


def _facts_of_model(opened: ForeignModel) -> str:
    model = loaders.language_model(opened)
    weights = next(model.model.parameters())
    size = short_count(sum(parameter.numel() for parameter in model.model.parameters()))
    return f"{size} parameters, {str(weights.dtype).removeprefix('torch.')} on {weights.device.type}"
