"""Which thread is shown: chosen from a list, named in the URL by its random id, and kept as long as one says."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from app import chat_loaders, state
from app.components.page import ago, errors_as_boxes, plain, prose
from moe_core.conversations.store import Conversations
from moe_core.conversations.thread_files import json_of, markdown_of
from moe_core.conversations.threads import Conversation, Found, Settings
from moe_core.words import count_of

# Session keys: the thread that is shown ("" = a new one), settings of a new thread, the search, the thread that is
# being renamed, the one that is to be deleted, how long threads are kept.
CHOSEN, NEW_SETTINGS, SEARCH, RENAMING, DELETING, RETENTION = (
    "chat_thread",
    "chat_new_settings",
    "chat_search",
    "chat_renaming",
    "chat_deleting",
    "chat_retention",
)
MOST_LISTED = 15
FEWEST_TOKENS, MOST_TOKENS = 10, 1000
RETENTIONS = {"until I delete it": None, "7 days": 7.0, "30 days": 30.0, "90 days": 90.0, "365 days": 365.0}
FIELDS = {
    "max_new_tokens": "chat_tokens",
    "temperature": "chat_temperature",
    "top_k": "chat_top_k",
    "top_p": "chat_top_p",
    "seed": "chat_seed",
    "system": "chat_system",
}
"""Session keys of the settings."""
_SETTINGS_OF = "chat_settings_of"
"""The thread and settings that the fields were drawn for last."""


def shown_thread(kept: Conversations) -> tuple[Conversation | None, bool]:
    """The thread that the URL names where that is news, else the one of this session, None = a new one; and whether
    there is no such thread."""
    linked = st.query_params.get(state.THREAD)
    known = st.session_state.get(CHOSEN)
    wanted = linked if linked and linked != known else known
    found = kept.conversation(wanted) if wanted else None
    choose(None if found is None else found.thread.id)
    return found, bool(wanted) and found is None


def choose(thread: str | None) -> None:
    """Show this thread from now on; None = a new one."""
    st.session_state[CHOSEN] = thread
    if thread is not None and st.query_params.get(state.THREAD) != thread:
        st.query_params[state.THREAD] = thread
    elif thread is None and state.THREAD in st.query_params:
        del st.query_params[state.THREAD]


def present_settings(conversation: Conversation | None) -> Settings:
    """Of the next answer, which the model in the side bar writes."""
    name = state.subject().name
    known = conversation.thread.settings if conversation is not None else st.session_state.get(NEW_SETTINGS)
    return Settings(name) if known is None else replace(known, model=name)


def thread_tools(kept: Conversations, conversation: Conversation | None) -> None:
    """The row above the messages, which stays in sight where they are scrolled (accessibility.js)."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="in_sight"):
        _list(kept)
        if conversation is not None:
            st.button("New thread", key="chat_new", icon=":material/add_comment:", on_click=choose, args=(None,))
        _settings(conversation)
        if conversation is not None and conversation.messages:
            with st.popover("Export", icon=":material/download:", key="chat_export"):
                st.caption("The branch that is shown, with every answer's settings.")
                st.download_button("As Markdown", lambda: markdown_of(conversation), "thread.md", "text/markdown",
                                   key="chat_markdown", icon=":material/article:", on_click="ignore")  # fmt: skip
                st.download_button("As JSON, with experts", lambda: json_of(conversation, kept), "thread.json",
                                   "application/json", key="chat_json", icon=":material/data_object:",
                                   on_click="ignore")  # fmt: skip


def _list(kept: Conversations) -> None:
    with st.popover("Threads", icon=":material/forum:", key="chat_threads", on_change="rerun") as box:
        if not box.open:
            return
        with errors_as_boxes("The threads could not be listed"):
            wanted = st.text_input("Search all messages", key=SEARCH, placeholder="Any text", icon=":material/search:")
            found = kept.threads(wanted or "")
            if not found:
                st.caption("No thread has this text." if wanted else "No thread yet: write the first message.")
            for one in found[:MOST_LISTED]:
                _entry(one)
            if len(found) > MOST_LISTED:
                st.caption(f"And {count_of(len(found) - MOST_LISTED, 'older thread')}: search to find them.")
            _keeping(kept)


def _entry(one: Found) -> None:
    thread = one.thread
    if st.session_state.get(RENAMING) == thread.id:
        key = f"chat_name_{thread.id}"
        st.text_input("Name", thread.name, key=key, max_chars=60, on_change=_rename, args=(thread.id, key))
        return
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center", gap="xxsmall"):
        is_shown = thread.id == st.session_state.get(CHOSEN)
        st.button(plain(thread.name), key=f"chat_open_{thread.id}", type="tertiary",
                  icon=":material/chat_bubble:" if is_shown else ":material/chat_bubble_outline:",
                  help=plain(f"{thread.settings.model}, used {ago(thread.used_at)}"), on_click=open_thread,
                  args=(one,))  # fmt: skip
        if st.session_state.get(DELETING) == thread.id:
            st.button("Delete for good", key=f"chat_gone_{thread.id}", type="primary", on_click=_delete,
                      args=(thread.id,))  # fmt: skip
            st.button("Keep", key=f"chat_keep_{thread.id}", on_click=_mark, args=(DELETING, None))
        else:
            st.button("Rename", key=f"chat_rename_{thread.id}", type="tertiary", icon=":material/edit:",
                      on_click=_mark, args=(RENAMING, thread.id))  # fmt: skip
            st.button("Delete", key=f"chat_delete_{thread.id}", type="tertiary", icon=":material/delete:",
                      on_click=_mark, args=(DELETING, thread.id))  # fmt: skip
    if one.excerpt:
        st.caption(plain(one.excerpt))


def _keeping(kept: Conversations) -> None:
    """How long threads are kept, and what deleting one means."""
    days = kept.retention_days
    names = list(RETENTIONS) if days in RETENTIONS.values() else [*RETENTIONS, f"{days:g} days"]
    present = next((name for name in names if RETENTIONS.get(name, days) == days), names[0])
    st.session_state[RETENTION] = present
    st.selectbox("A thread is kept", names, key=RETENTION, on_change=_retain,
                 help="After its last message. What is older is deleted when this page is opened.")  # fmt: skip
    st.caption(prose(
        f"Threads are in `{kept.path}`, on this computer and nowhere else. Deleting one takes its text out of this "
        "file and its log at once; copies that you exported or sent to other pages stay."
    ))  # fmt: skip


def open_thread(one: Found) -> None:
    """For callbacks: show a thread, at the message that was found; the side bar shows its model, if that is there."""
    with errors_as_boxes("The thread could not be opened"):
        if one.message is not None:
            chat_loaders.conversations().show(one.message)
        choose(one.thread.id)
        state.open_run(one.thread.settings.model)


def _rename(thread: str, key: str) -> None:
    with errors_as_boxes("The thread was not renamed"):
        chat_loaders.conversations().rename(thread, st.session_state[key])
    st.session_state[RENAMING] = None


def _mark(key: str, thread: str | None) -> None:
    st.session_state[key] = thread


def _delete(thread: str) -> None:
    st.session_state[DELETING] = None
    if st.session_state.get(CHOSEN) == thread:
        choose(None)
    with errors_as_boxes("The thread was not deleted"):
        chat_loaders.answers().delete(thread)


def _retain() -> None:
    with errors_as_boxes("The setting was not kept"):
        chat_loaders.conversations().retention_days = RETENTIONS.get(st.session_state[RETENTION])


def _settings(conversation: Conversation | None) -> None:
    """Of the thread, each with what it does; another browser's choice shows here, too."""
    settings = present_settings(conversation)
    drawn_for = (st.session_state.get(CHOSEN), replace(settings, model=""))
    if st.session_state.get(_SETTINGS_OF) != drawn_for:
        st.session_state[_SETTINGS_OF] = drawn_for
        st.session_state.update({key: getattr(settings, field) for field, key in FIELDS.items()})
        tokens = FIELDS["max_new_tokens"]  # another program may have asked for more than the slider has
        st.session_state[tokens] = min(max(st.session_state[tokens], FEWEST_TOKENS), MOST_TOKENS)
    with st.popover("Settings", icon=":material/tune:", key="chat_settings"):
        st.caption(f"Of this thread, for its next answers. {plain(settings.model)} writes them: choose another model "
                   "in the side bar.")  # fmt: skip
        keys = FIELDS
        st.slider("New tokens", FEWEST_TOKENS, MOST_TOKENS, step=10, key=keys["max_new_tokens"],
                  on_change=_keep_settings,
                  help="Tokens of an answer at most; the model may end it earlier.")  # fmt: skip
        st.slider("Temperature", 0.0, 2.0, step=0.05, key=keys["temperature"], on_change=_keep_settings,
                  help="0 always takes the likeliest token; higher values are bolder.")  # fmt: skip
        st.slider("Top-k", 0, 200, step=5, key=keys["top_k"], on_change=_keep_settings,
                  help="Only the k likeliest tokens are drawn from; 0 = all.")  # fmt: skip
        st.slider("Top-p", 0.05, 1.0, step=0.05, key=keys["top_p"], on_change=_keep_settings,
                  help="Only the likeliest tokens that together reach this probability are drawn from.")  # fmt: skip
        st.number_input("Seed", 0, 2**31 - 1, key=keys["seed"], on_change=_keep_settings,
                        help="The same seed, messages and settings give the same answer.")  # fmt: skip
        st.text_area("What the model is told first", key=keys["system"], height=80, max_chars=20_000,
                     on_change=_keep_settings,
                     help="The system message. A base model reads it as the beginning of the text.")  # fmt: skip


def _keep_settings() -> None:
    with errors_as_boxes("The settings were not kept"):
        thread = st.session_state.get(CHOSEN)
        fields = {field: st.session_state[key] for field, key in FIELDS.items()}
        settings = Settings(state.subject().name, **fields)
        if thread is None:
            st.session_state[NEW_SETTINGS] = settings
        else:
            chat_loaders.conversations().set_settings(thread, settings)
        st.session_state[_SETTINGS_OF] = (thread, replace(settings, model=""))
