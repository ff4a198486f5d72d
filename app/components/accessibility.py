"""What Streamlit's page lacks: a link past the side bar, ink on buttons, no fading of a live run's pictures."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from moe_core.figures.palette import DARK_PAGE, LIGHT_PAGE

_MOUNT = st.components.v2.component(
    "moescope_accessibility", html="<span></span>", js=Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
)


def add_aids() -> None:
    """Put them on the page; where on it this is called makes no difference."""
    theme = "dark" if st.context.theme.type == "dark" else "light"
    page = DARK_PAGE if theme == "dark" else LIGHT_PAGE
    _MOUNT(key="accessibility", data={"page": page, "text": st.get_option(f"theme.{theme}.textColor")})
