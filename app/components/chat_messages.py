"""The messages of a thread, drawn again twice a second while an answer is being written."""

from __future__ import annotations

import time
from dataclasses import replace

import streamlit as st

from app import chat_loaders
from app.components.chat_answer import ask_without_expert, facts_line, send_elsewhere, show_compared, show_tokens
from app.components.chat_thread import CHOSEN, choose, present_settings
from app.components.page import errors_as_boxes, plain, prose
from moe_core.conversations.store import MOST_CHARACTERS, Conversations
from moe_core.conversations.threads import Conversation, Message
from moe_core.words import count_of

# Session keys: the thread of which all messages are shown; the message that is being edited; the one shown whole.
EARLIER, EDITED, UNFOLDED = "chat_earlier", "chat_edited", "chat_unfolded"
MOST_SHOWN = 20
MOST_CHARACTERS_SHOWN = 5_000
REFRESH_SECONDS = 0.5
MOST_SEEDS = 2**31


def show_messages(kept: Conversations, thread: str, layer: int, live: bool) -> None:
    """The branch that is shown; runs again and again while an answer is written (`live`)."""
    with errors_as_boxes("The thread could not be shown"):
        conversation = kept.conversation(thread)
        if conversation is None or (live and conversation.written(time.time()) is None):
            st.rerun()  # the whole page once more: its answer, and an end to these reruns
        messages = conversation.messages
        if len(messages) > MOST_SHOWN and st.session_state.get(EARLIER) != thread:
            hidden = len(messages) - MOST_SHOWN
            st.button(f"Show {count_of(hidden, 'earlier message')}", key="chat_show_earlier",
                      icon=":material/expand_less:", on_click=_show_earlier, args=(thread,))  # fmt: skip
            messages = messages[-MOST_SHOWN:]
        with st.container(key="live"):  # what is drawn again does not fade
            for message in messages:
                if message.answer is None:
                    _show_question(conversation, message)
                else:
                    _show_answer(kept, conversation, message, layer)


def _show_question(conversation: Conversation, message: Message) -> None:
    with st.chat_message("user"):
        if st.session_state.get(EDITED) == message.id:
            _edit(message)
            return
        _text(message.text, message.id)
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            _branches(message)
            st.button("Edit", key=f"chat_edit_{message.id}", icon=":material/edit:", type="tertiary",
                      on_click=_begin_edit, args=(message.id,))  # fmt: skip
            if message is conversation.messages[-1]:
                st.button("Answer it", key=f"chat_answer_{message.id}", icon=":material/play_arrow:", on_click=_answer,
                          args=(message.id, 0))  # fmt: skip


def _text(text: str, message: int) -> None:
    """As it is; of a very long one the beginning, until all of it is asked for."""
    if len(text) <= MOST_CHARACTERS_SHOWN or st.session_state.get(UNFOLDED) == message:
        st.text(text)
        return
    st.text(f"{text[:MOST_CHARACTERS_SHOWN]} …")
    st.button(f"Show all {count_of(len(text), 'character')}", key=f"chat_unfold_{message}", type="tertiary",
              icon=":material/expand_more:", on_click=_unfold, args=(message,))  # fmt: skip


def _unfold(message: int) -> None:
    st.session_state[UNFOLDED] = message


def _edit(message: Message) -> None:
    key = f"chat_edited_{message.id}"
    st.text_area("Your message", message.text, key=key, max_chars=MOST_CHARACTERS, height=160)
    st.caption("The message as it is stays, in a branch of its own.")
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.button("Send as a new branch", key=f"chat_edit_go_{message.id}", type="primary", on_click=_send_edited,
                  args=(message, key))  # fmt: skip
        st.button("Leave it", key=f"chat_edit_no_{message.id}", on_click=_begin_edit, args=(None,))


def _show_answer(kept: Conversations, conversation: Conversation, message: Message, layer: int) -> None:
    answer = message.answer
    assert answer is not None
    is_written = answer.is_written(time.time())
    with st.chat_message("assistant"):
        if message.text.strip():
            _text(message.text.strip(), message.id)
        elif not is_written and not answer.error:
            st.caption("Nothing was written.")
        if answer.error:
            st.error(prose(answer.error), icon=":material/error:")
        st.caption(plain(facts_line(answer)))
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            being_written = conversation.written(time.time())
            in_turn = [message, *message.compared]
            if being_written in in_turn:
                st.button("Stop", key=f"chat_stop_{message.id}", icon=":material/stop_circle:", type="primary",
                          on_click=_stop, args=([one.id for one in in_turn],))  # fmt: skip
            else:
                _branches(message)
                st.button("Answer again", key=f"chat_again_{message.id}", icon=":material/refresh:", type="tertiary",
                          on_click=_answer, args=(message.parent, len(message.siblings)),
                          help="With the next seed, beside this one. At temperature 0 it is the same.")  # fmt: skip
                send_elsewhere(message)
        show_tokens(kept, message, layer, live=is_written)
        if not is_written:
            ask_without_expert(kept, message, layer)
        show_compared(kept, message, layer)


def _branches(message: Message) -> None:
    """Where several stand at this place: which one this is, and the way to the others."""
    if len(message.siblings) < 2:
        return
    place = message.place
    with st.container(horizontal=True, vertical_alignment="center", gap="xxsmall", width="content"):
        for name, icon, to in (("Previous", "left", place - 2), ("Next", "right", place)):
            is_there = 0 <= to < len(message.siblings)
            st.button(name, key=f"chat_{name}_{message.id}", icon=f":material/chevron_{icon}:",
                      type="tertiary", disabled=not is_there, on_click=_show,
                      args=(message.siblings[to] if is_there else message.id,))  # fmt: skip
            if name == "Previous":
                st.caption(f"{place} of {len(message.siblings)}")


def _show_earlier(thread: str) -> None:
    st.session_state[EARLIER] = thread


def _begin_edit(message: int | None) -> None:
    st.session_state[EDITED] = message


def _show(message: int) -> None:
    with errors_as_boxes("It could not be shown"):
        chat_loaders.conversations().show(message)


def _stop(messages: list[int]) -> None:
    with errors_as_boxes("It could not be stopped"):
        for message in messages:
            chat_loaders.answers().stop(message)


def _answer(question: int, answers_before: int) -> None:
    """For callbacks: one more answer to this message, by the model in the side bar, with a seed of its own."""
    with errors_as_boxes("It was not answered"):
        kept = chat_loaders.conversations()
        conversation = kept.conversation(kept.thread_of(question))
        settings = present_settings(conversation)
        seed = (settings.seed + answers_before) % MOST_SEEDS
        chat_loaders.answers().ask(question, replace(settings, seed=seed))


def _send_edited(message: Message, key: str) -> None:
    with errors_as_boxes("It was not sent"):
        kept = chat_loaders.conversations()
        thread = kept.thread_of(message.id)
        question = kept.say(thread, st.session_state[key], message.parent)
        _begin_edit(None)
        chat_loaders.answers().ask(question, present_settings(kept.conversation(thread)))


def send(text: str) -> None:
    """For callbacks: a message behind the last one of the thread that is shown, or the first one of a new thread."""
    with errors_as_boxes("It was not sent"):
        kept = chat_loaders.conversations()
        chosen = st.session_state.get(CHOSEN)
        conversation = kept.conversation(chosen) if chosen else None
        settings = present_settings(conversation)
        if conversation is None:
            thread, parent = kept.new_thread(settings), None
            choose(thread)
        else:
            thread, parent = conversation.thread.id, conversation.messages[-1].id if conversation.messages else None
            if settings != conversation.thread.settings:
                kept.set_settings(thread, settings)  # another model is chosen in the side bar
        question = kept.say(thread, text, parent)
        chat_loaders.answers().ask(question, settings)
