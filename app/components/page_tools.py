"""The row above every page: a link to what is shown, a report on what is open, a short tour for who comes first."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from app.components.report_button import show_report
from app.components.tour import SEEN, STEPS, close_tour, show_tour, start_tour, tour_step
from moe_core.inference.subjects import Opened
from moe_core.runs import RunSummary

# Session keys: the browser's part; is the report unfolded?
LINK, REPORT = "page_link", "report_open"

_HERE = Path(__file__).resolve().parent
_MOUNT = st.components.v2.component(
    "moescope_link_and_visit",
    html=(_HERE / "link_and_visit.html").read_text(encoding="utf-8"),
    css=(_HERE / "link_and_visit.css").read_text(encoding="utf-8"),
    js=(_HERE / "link_and_visit.js").read_text(encoding="utf-8"),
)


@st.fragment
def page_tools(chosen: RunSummary | Opened | None) -> None:
    """Draw the row, and below it what was asked for; `chosen` is what the side bar shows."""
    with st.container(horizontal=True, horizontal_alignment="right", vertical_alignment="center", gap="xsmall"):
        step = tour_step()
        _MOUNT(
            key=LINK,
            data={"tour": "" if step is None else f"Step {step + 1} of {len(STEPS)}. {STEPS[step]}",
                  "seen": st.session_state.get(SEEN, False)},
            width="content",
            on_first_visit_change=start_tour,
            on_closed_change=close_tour,
        )  # fmt: skip
        st.button("Report", key="report_button", type="tertiary", icon=":material/summarize:", on_click=_toggle_report,
                  help="One HTML file with every picture, verdict and number of what is open.")  # fmt: skip
        st.button("? Tour", key="tour_button", type="tertiary", on_click=start_tour,
                  help="A tour of the dashboard in five short steps.")  # fmt: skip
    show_tour()
    if st.session_state.get(REPORT):
        show_report(chosen)


def _toggle_report() -> None:
    st.session_state[REPORT] = not st.session_state.get(REPORT)
