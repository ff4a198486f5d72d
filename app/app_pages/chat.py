"""Change: talk with the model, in threads that are kept, and see which experts wrote each answer."""

from __future__ import annotations

import time

import streamlit as st

from app import chat_loaders, loaders, state
from app.components.chat_messages import REFRESH_SECONDS, send, show_messages
from app.components.chat_thread import open_thread, shown_thread, thread_tools
from app.components.page import ago, errors_as_boxes, header, plain
from moe_core.conversations.answer_verdict import answer_verdict
from moe_core.conversations.store import MOST_CHARACTERS
from moe_core.conversations.threads import Conversation
from moe_core.errors import MoescopeError
from moe_core.inference.passages import opening_words
from moe_core.inference.subjects import ForeignModel

INPUT = "chat_input"
WATCH_SECONDS = 2.0
RECENT = 5
SUGGESTIONS = 3


def headline(conversation: Conversation | None) -> str:
    """What the model did last, in a sentence."""
    answers = [] if conversation is None else [one for one in conversation.messages if one.answer is not None]
    if not answers:
        return "Write a message: the answer is kept with the experts that wrote each of its tokens."
    last = answers[-1]
    assert last.answer is not None
    if last.answer.is_written(time.time()):
        return f"{last.answer.settings.model} is answering; each token is kept with its experts as it comes."
    if last.answer.error:
        return "The last message was not answered to its end; below it stands why."
    return answer_verdict(last.answer, kept.tokens(last.id), layer)


def continues_text() -> bool:
    """Whether the model in the side bar was never taught to answer."""
    return not isinstance(subject, ForeignModel) or loaders.language_model(subject).chat_template is None


def show_start() -> None:
    """A new thread: what one might write first, and the threads there are."""
    with st.container(horizontal=True, gap="small"):
        for number, text in enumerate(suggestions()):
            st.button(plain(text), key=f"chat_suggestion_{number}", icon=":material/lightbulb:", on_click=send,
                      args=(text,))  # fmt: skip
    recent = kept.threads()[:RECENT]
    if recent:
        st.markdown("#### Go on with a thread")
    for one in recent:
        thread = one.thread
        about = f"{thread.settings.model}, {ago(thread.used_at)}"
        st.button(f"{plain(thread.name)} :small[:gray[{plain(about)}]]", key=f"chat_recent_{thread.id}",
                  icon=":material/chat_bubble:", type="tertiary", on_click=open_thread, args=(one,))  # fmt: skip


def suggestions() -> list[str]:
    """Beginnings of held-out texts for a model that continues text, else questions."""
    if not continues_text():
        return ["What is a lease?", "Write a function that adds two numbers.", "How does rain form?"]
    documents = loaders.example_text(subject)
    first = {document.domain: document for document in reversed(documents)}
    return [opening_words([document]) for document in list(first.values())[:SUGGESTIONS]]


def watch(thread: str, drawn: str) -> None:
    """See what is done to the thread elsewhere, in another browser or by another program."""
    try:
        is_other = kept.fingerprint(thread) != drawn
    except MoescopeError:
        return  # told of by the page
    if is_other:
        st.rerun()


kept = chat_loaders.conversations()
subject, layer = state.live_subject(), state.layer_if_any()
with errors_as_boxes("Old threads could not be deleted"):
    kept.tidy()
conversation, is_missing = shown_thread(kept)
is_written = conversation is not None and conversation.written(time.time()) is not None
header("Which experts write the answers?", headline(conversation))
if is_missing:
    st.warning("The thread of this link was deleted, or was never kept on this computer: this is a new one.")
thread_tools(kept, conversation)
if continues_text():
    st.caption(plain(
        f"{subject.name} continues text; it was not taught to answer. It reads the thread as a transcript and goes on."
    ))  # fmt: skip
if conversation is None:
    show_start()
else:
    drawn = kept.fingerprint(conversation.thread.id)
    st.fragment(show_messages, run_every=REFRESH_SECONDS if is_written else None)(
        kept, conversation.thread.id, layer, is_written
    )
    if not is_written:
        st.fragment(watch, run_every=WATCH_SECONDS)(conversation.thread.id, drawn)
st.chat_input(
    f"Message to {subject.name}", key=INPUT, max_chars=MOST_CHARACTERS, disabled=is_written,
    on_submit=lambda: send(st.session_state[INPUT]),
)  # fmt: skip
