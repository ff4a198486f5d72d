"""What each attention head is worth: the map where it was measured, else the button that measures it."""

from __future__ import annotations

import streamlit as st

from app import effect_loaders, loaders
from app.components.figure import show_figure
from app.components.measuring import SOON_SECONDS, show_measuring
from app.components.page import errors_as_boxes
from moe_core.figures.causes import heads_map_figure
from moe_core.inference.measuring_job import start_measuring
from moe_core.progress import Progress
from moe_core.runs import RunFolder
from moe_core.words import count_of, duration


def show_heads(run: RunFolder) -> None:
    """The section of the page Interventions; of a run, whose attention we can enter."""
    with errors_as_boxes("The attention heads could not be shown"):
        heads, experts = loaders.head_effects(run), loaders.ablation(run)
        loaded = loaders.loaded_run(run)
        model = loaded.config.model
        count = model.num_layers * model.num_heads
        known = 0 if heads is None or heads.attrs["step"] != loaded.step else int((heads["domain"] == "all").sum())
        if heads is not None and known:
            if experts is not None and experts.attrs["step"] != loaded.step:
                experts = None
            terms = ["head importance", "nats", "interval"]
            show_figure(heads_map_figure(heads, experts), key="heads_map", terms=terms, named=False)
        else:
            st.markdown("#### Without each attention head")
        if known < count:
            _offer(run, count - known)


def _offer(run: RunFolder, count: int) -> None:
    from moe_core.evaluation.heads import head_effects

    key = f"heads {effect_loaders.key_of(run)}"
    if show_measuring(key, "The attention heads could not be measured"):
        return
    loaded = loaders.loaded_run(run)

    def measure(progress: Progress) -> None:
        head_effects(loaded, progress=progress)

    with st.container(horizontal=True, vertical_alignment="center"):
        hint = "A masked head adds nothing to its layer. What is measured is kept; this page may be left."
        label = f"Mask each of {count_of(count, 'head')}"
        if st.button(label, icon=":material/science:", key="measure_heads", help=hint):
            start_measuring(key, "Masking attention heads", measure).wait(SOON_SECONDS)
            st.rerun()
        about = duration(effect_loaders.seconds_of_expert(run) * count)
        st.caption(f"at most {about}, on the text that experts are measured on")
