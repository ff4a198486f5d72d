"""A field for text of one's own. What is typed is kept under a name, which stands in the URL in its place: a link shows
the text again, and does not hold it."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from app.components.page import ago, plain
from moe_core.figures.tokens import visible
from moe_core.inference.saved_texts import MOST, delete_text, find_text, save_text, saved_texts

SHOWN, TITLE_CHARACTERS = 20, 60
"""In the list: so many texts, and so much of each."""


@dataclass(frozen=True)
class LinkedText:
    """What the URL says of a field, as this session knows it."""

    name: str | None
    """Of a saved text; None of the example, and of what is not kept."""
    text: str
    is_missing: bool = False
    """The link names a text that is not here."""


def own_text(
    label: str, key: str, link: str, example: str, *, height: int, about: str, show_label: bool = False
) -> str:
    """Draw the field under the session key `key`, with `example` in it at first, and what is kept; the text in it.

    `link` is what the name of the text goes by in the URL.
    """
    linked = _follow(key, link, example)
    typed = st.text_area(label, key=key, height=height, persist_state="session", help=about,
                         label_visibility="visible" if show_label else "collapsed",
                         placeholder="Type or paste text")  # fmt: skip
    if typed != linked.text:
        linked = LinkedText(save_text(typed) if typed.strip() else None, typed)
    elif linked.name is not None and not linked.is_missing and find_text(linked.name) is None:
        linked = LinkedText(None, typed)  # deleted, here or in another browser: it is not kept again unasked
    st.session_state[_session_key(link)] = linked
    _write(link, linked.name)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        if linked.is_missing:
            st.warning("The text of this link was deleted, or was never kept on this computer: this is the example.")
        elif linked.name is not None:
            st.caption("Kept on this computer, so that a link to this page shows it.")
        elif typed not in ("", example):
            st.caption("Not kept: a link to this page does not show this text.")
        _saved(key, link)
    return typed


def _session_key(link: str) -> str:
    return f"{link}_linked"


def _follow(key: str, link: str, example: str) -> LinkedText:
    """What the field holds before it is drawn: what the URL names where that is news, else what this session has."""
    known: LinkedText | None = st.session_state.get(_session_key(link))
    name = st.query_params.get(link)
    if known is not None and key in st.session_state and name in (None, known.name):
        return known
    if name is None:
        found = LinkedText(None, st.session_state.get(key, example))
    else:
        text = find_text(name)
        found = LinkedText(name, example if text is None else text, text is None)
    st.session_state[key] = found.text
    return found


def _write(link: str, name: str | None) -> None:
    if name is not None and st.query_params.get(link) != name:
        st.query_params[link] = name
    elif name is None and link in st.query_params:
        del st.query_params[link]


def _saved(key: str, link: str) -> None:
    """A button that unfolds the list of what is kept, where something is."""
    with st.popover("Saved texts", icon=":material/history:", type="tertiary", key=f"{link}_list",
                    on_change="rerun") as box:  # fmt: skip
        if not box.open:
            return
        texts = saved_texts()
        if not texts:
            st.caption("No text is kept. What you type is, for as long as it is among the last used.")
            return
        st.caption(f"On this computer, and nowhere else: at most {MOST}; what was used longest ago goes first.")
        for number, one in enumerate(texts[:SHOWN]):
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                title = visible(" ".join(one.text[: 4 * TITLE_CHARACTERS].split()))[:TITLE_CHARACTERS]
                use = (key, link, one.name, one.text)
                about = f"Used {ago(one.used_at)}"
                st.button(plain(title), key=f"{link}_use_{number}", icon=":material/notes:", type="tertiary",
                          help=about, on_click=_use, args=use)  # fmt: skip
                st.button("Delete", key=f"{link}_delete_{number}", icon=":material/delete:", type="tertiary",
                          help="Links to it show the example from then on", on_click=delete_text,
                          args=(one.name,))  # fmt: skip
        if len(texts) > SHOWN:
            st.caption(f"And {len(texts) - SHOWN} more.")
        st.button("Delete all", key=f"{link}_delete_all", icon=":material/delete:", on_click=_delete_all)


def _use(key: str, link: str, name: str, text: str) -> None:
    """For callbacks: put a saved text into the field."""
    st.session_state[key] = text
    st.session_state[_session_key(link)] = LinkedText(name, text)


def _delete_all() -> None:
    for one in saved_texts():
        delete_text(one.name)
