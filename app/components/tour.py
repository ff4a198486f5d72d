"""Five steps for who is here the first time. They stand above the page, cover nothing, and are closed with a key."""

from __future__ import annotations

import streamlit as st

# Session keys: the step that is shown; was the tour closed? The browser then remembers that (link_and_visit.js).
STEP, SEEN = "tour_step", "tour_seen"
STEPS = (
    "The side bar says which run or file you look at, and in which layer. Both stay on every page and stand in the "
    "address, so that Back, reload and a copied link show the same again.",
    "Each page asks a question, answers it in a sentence and shows one picture. Point at a cell to read it; click on "
    "an expert to go to it.",
    "Beside a figure stands what chance alone would give. Where it says “not distinguishable from chance”, do not "
    "read patterns into the picture.",
    "Tokens sends your own text through the model. “Open a file or a model” in the side bar takes a trace, the counts "
    "of a server, or a model of your own.",
    "Copy link above leads others to what you see; Report saves everything in one file. The question mark beside them "
    "starts this tour again.",
)


def tour_step() -> int | None:
    """The step that is shown, from 0; None where the tour is closed."""
    return st.session_state.get(STEP)


def start_tour() -> None:
    """For callbacks: show the first step."""
    st.session_state[STEP] = 0


def close_tour() -> None:
    """For callbacks: it is not shown again unless it is asked for."""
    st.session_state[STEP], st.session_state[SEEN] = None, True


def show_tour() -> None:
    """Draw the present step; nothing where the tour is closed."""
    step = tour_step()
    if step is None:
        return
    is_last = step == len(STEPS) - 1
    with st.container(border=True, key="tour"):
        st.markdown(f"**{step + 1} of {len(STEPS)}.** {STEPS[step]}")
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.button("Done" if is_last else "Next", key="tour_next", on_click=_go, args=(step + 1,))
            if step:
                st.button("Previous", key="tour_previous", on_click=_go, args=(step - 1,), type="tertiary")
            if not is_last:
                st.button("Close the tour", key="tour_close", on_click=close_tour, type="tertiary",
                          help="Esc closes it too.")  # fmt: skip


def _go(step: int) -> None:
    if step >= len(STEPS):
        close_tour()
    else:
        st.session_state[STEP] = step
