"""A choice of one of a few, in a box that is never empty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import streamlit as st

from app import state

T = TypeVar("T", int, str)


def pick(label: str, key: str, options: Sequence[T], default: T, about: str = "", width: int = 190) -> T:
    """A choice that always has a value and is in the URL. Its label stands apart: the box would add "required"."""
    state.preset(key, options, default)
    with st.container(width=width, gap=None):
        st.markdown(f":small[{label}]", help=about or None)
        return state.present(
            st.selectbox(
                label, options, index=None, required=True, key=key, bind="query-params", label_visibility="collapsed"
            )
        )
