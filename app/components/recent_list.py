"""What was opened lately, also before the server was started, to be opened again with one click."""

from __future__ import annotations

import streamlit as st

from app.components.page import ago, plain, prose
from moe_core.files import is_remembered
from moe_core.inference.kept_files import forget_kept_files
from moe_core.inference.recently_opened import Recent, forget, recently_opened
from moe_core.inference.subjects import OPENED
from moe_core.words import count_of

SHOWN = 6
_ICONS = {"trace": ":material/draft:", "counts": ":material/bar_chart:", "model": ":material/memory:"}


def pick_recent() -> Recent | None:
    """Draw the list; what was clicked now, if anything. What is gone says so."""
    recent, wrong = recently_opened()
    if wrong:
        st.caption(prose(wrong))
    if not is_remembered():
        st.caption("What is opened is forgotten when the server ends: your cache folder cannot be written.")
    if not recent:
        return None
    st.markdown(":small[Recently opened]")
    picked = None
    for number, one in enumerate(recent[:SHOWN]):
        gone = one.is_gone()
        about = "uploaded" if one.is_upload else one.place
        if gone:
            about = "Its upload is not kept any more" if one.is_upload else f"There is nothing at {one.place} any more"
        if st.button(f"{plain(one.shown)} · {'gone' if gone else ago(one.opened_at)}", key=f"recent_{number}",
                     type="tertiary", disabled=gone, icon=_ICONS[one.kind], help=plain(about), wrap=True):  # fmt: skip
            picked = one
    st.button("Forget them", key="forget_recent", type="tertiary", icon=":material/delete_sweep:", on_click=_forget_all,
              help=f"Empties this list of {count_of(len(recent), 'entry')} and removes what was kept of recordings; "
              "your own files stay.")  # fmt: skip
    return picked


def _forget_all() -> None:
    forget()
    forget_kept_files(OPENED.paths())
