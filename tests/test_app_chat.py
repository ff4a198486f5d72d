"""The Chat page: threads that are kept, answers that go on, branches, and what is told where there can be no answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from app_support import Open, followed_link, numbers, payloads, shown, text_of, wait_until
from streamlit.testing.v1 import AppTest
from training_support import make_config, write_corpus

from app import chat_loaders
from moe_core.conversations.database import conversations_path
from moe_core.conversations.store import Conversations
from moe_core.conversations.threads import Conversation, Message, Settings
from moe_core.inference.saved_texts import find_text
from moe_core.runs import RunFolder
from moe_core.training.loop import train

SCRIPT = "<script>alert(1)</script> **bold** ![x](http://e.example/x)"


@pytest.fixture
def at(dashboard: Open, own_root: Path) -> AppTest:
    return dashboard(own_root, "chat", layer="1")


@pytest.fixture
def kept(own_root: Path) -> Conversations:
    return Conversations(conversations_path(own_root))


def is_quiet(kept: Conversations, thread: str) -> bool:
    conversation = kept.conversation(thread)
    return conversation is None or (
        conversation.written(0) is None
        and all(
            one.answer is None or one.answer.ending is not None
            for message in conversation.messages
            for one in (message, *message.compared)
        )
    )


def settled(at: AppTest, kept: Conversations) -> Conversation:
    """Wait for the answer and draw the page again."""
    thread = at.session_state["chat_thread"]
    wait_until(lambda: is_quiet(kept, thread))
    at.run()
    assert not at.exception, at.exception
    conversation = kept.conversation(thread)
    assert conversation is not None
    return conversation


def said(at: AppTest, kept: Conversations, text: str) -> Conversation:
    at.chat_input[0].set_value(text).run()
    assert not at.exception, at.exception
    return settled(at, kept)


def last(conversation: Conversation) -> Message:
    return conversation.messages[-1]


def texts(at: AppTest) -> list[str]:
    return [str(part.value) for part in at.main.text]


def test_a_new_thread_offers_beginnings_and_says_what_the_model_is(at: AppTest) -> None:
    assert at.title[0].value == "Which experts write the answers?"
    text = shown(at)
    assert "Write a message" in text
    assert "tiny continues text; it was not taught to answer" in text
    assert at.chat_input[0].placeholder == "Message to tiny"
    assert at.button(key="chat_suggestion_0").label
    assert "thread" not in at.query_params


def test_a_message_is_answered_and_shown_word_for_word(at: AppTest, kept: Conversations) -> None:
    conversation = said(at, kept, "Hi <b> *x*")
    answer = last(conversation)
    assert answer.answer is not None
    assert texts(at)[0] == "Hi <b> *x*"
    if answer.text.strip():
        assert texts(at)[1] == answer.text.strip()
    assert conversation.thread.id in at.query_params["thread"]
    text = shown(at)
    assert f"Run tiny, step 40 wrote {answer.answer.tokens} token" in text
    assert "seed 0" in text
    # Another browser that follows the link sees the same.
    other = followed_link("chat", run="tiny", layer="1", thread=conversation.thread.id)
    assert texts(other) == texts(at)


def test_hostile_text_is_text_and_a_message_beyond_the_window_is_told_of(at: AppTest, kept: Conversations) -> None:
    said(at, kept, SCRIPT)
    assert texts(at)[0] == SCRIPT
    for part in (*at.main.markdown, *at.main.caption, *at.main.error):
        assert "<script>" not in part.value.replace("\\<", "")
        assert "**bold" not in part.value
    conversation = said(at, kept, "y " * 50_000)
    assert "32 at once (its context window)" in shown(at)
    assert "The last message was not answered" in shown(at)
    assert conversation.messages[-2].text == "y " * 50_000
    assert max(map(len, texts(at))) < 10_000
    at.button(key=f"chat_unfold_{conversation.messages[-2].id}").click().run()
    assert ("y " * 50_000).strip() in texts(at)
    said(at, kept, "short")
    assert "not answered" not in shown(at)


def test_answers_again_and_edits_make_branches(at: AppTest, kept: Conversations) -> None:
    first = said(at, kept, "one")
    question, answer = first.messages
    at.button(key=f"chat_again_{answer.id}").click().run()
    second = settled(at, kept)
    assert len(last(second).siblings) == 2
    again = last(second)
    assert again.answer is not None
    assert again.answer.settings.seed == 1
    assert "2 of 2" in shown(at)
    at.button(key=f"chat_Previous_{again.id}").click().run()
    shown_now = kept.conversation(first.thread.id)
    assert shown_now is not None
    assert last(shown_now).id == answer.id
    assert "1 of 2" in shown(at)
    at.button(key=f"chat_edit_{question.id}").click().run()
    at.text_area(key=f"chat_edited_{question.id}").set_value("two").run()
    at.button(key=f"chat_edit_go_{question.id}").click().run()
    edited = settled(at, kept).messages[0].id
    assert texts(at)[0] == "two"
    at.button(key=f"chat_Previous_{edited}").click().run()
    assert texts(at)[0] == "one"
    # One that nobody has answered, as when the program ended in between.
    alone = kept.say(first.thread.id, "three", None)
    at.run()
    assert texts(at) == ["three"]
    at.button(key=f"chat_answer_{alone}").click().run()
    assert len(settled(at, kept).messages) == 2


def test_stop_ends_an_answer_and_keeps_it(at: AppTest, kept: Conversations) -> None:
    at.session_state["chat_new_settings"] = Settings("tiny", max_new_tokens=1_000_000, temperature=0)
    at.chat_input[0].set_value("on and on").run()
    conversation = kept.conversation(at.session_state["chat_thread"])
    assert conversation is not None
    answer = last(conversation)
    at.run()
    assert at.chat_input[0].disabled
    assert "is answering" in shown(at)
    at.button(key=f"chat_stop_{answer.id}").click().run()
    stopped = last(settled(at, kept))
    assert stopped.answer is not None
    assert stopped.answer.ending == "cancelled"
    assert "stopped" in shown(at)
    assert not at.chat_input[0].disabled


def test_tokens_unfold_in_the_colours_of_their_experts(at: AppTest, kept: Conversations) -> None:
    at.session_state["chat_new_settings"] = Settings("tiny", max_new_tokens=30, temperature=2.0)
    answer = last(said(at, kept, "The"))
    at.session_state[f"chat_tokens_{answer.id}"] = True
    at.run()
    (payload,) = payloads(at)
    tokens = kept.tokens(answer.id)
    assert tokens is not None
    assert payload["count"] == len(tokens.token_ids)
    assert payload["layers"] == [0, 1]
    assert text_of(payload)
    assert (numbers(payload["indices"], "<i2").reshape(2, -1, 2)[..., 0] >= 0).all()


def test_the_same_without_an_expert_stands_beside_with_what_differs(at: AppTest, kept: Conversations) -> None:
    at.session_state["chat_new_settings"] = Settings("tiny", max_new_tokens=30)
    answer = last(said(at, kept, "The"))
    at.session_state[f"chat_change_{answer.id}"] = True
    at.run()
    at.selectbox(key=f"chat_change_layer_{answer.id}").set_value(0).run()
    at.session_state[f"chat_change_{answer.id}"] = True
    at.run()
    at.button(key=f"chat_change_go_{answer.id}").click().run()
    conversation = settled(at, kept)
    (beside,) = last(conversation).compared
    assert beside.answer is not None
    assert beside.answer.change is not None
    assert beside.answer.change.layer == 0
    what = beside.answer.change.what
    text = shown(at)
    assert what in text
    assert "The texts part at token" in text or "Not one of" in text or "are the same" in text
    assert len(payloads(at)) == 2
    # It stays after a reload.
    other = followed_link("chat", run="tiny", layer="1", thread=conversation.thread.id)
    assert len(payloads(other)) == 2


def test_an_answer_is_sent_to_tokens_under_a_name_and_not_in_the_address(at: AppTest, kept: Conversations) -> None:
    at.session_state["chat_new_settings"] = Settings("tiny", max_new_tokens=30)
    answer = last(said(at, kept, "The"))
    for page, source, link in (("Tokens", "text", "tokens_saved"), ("Interventions", "loss_text", "loss_saved")):
        at.session_state[f"chat_send_{answer.id}"] = True
        at.run()
        at.button(key=f"chat_to_{page}_{answer.id}").click().run()
        sent = [query for component in at.sidebar if (query := query_of(component))]
        assert sent
        address = dict(part.split("=") for part in sent[-1].split("&"))
        assert address["run"] == "tiny"
        assert address[source] == "Your+own+text"
        assert find_text(address[link]) == answer.text


def query_of(element: object) -> str | None:
    proto = getattr(element, "proto", None)
    if proto is None or proto.__class__.__name__ != "BidiComponent":
        return None
    return json.loads(proto.json).get("query")


def test_threads_are_searched_renamed_and_deleted(at: AppTest, kept: Conversations, own_root: Path) -> None:
    first = said(at, kept, "About needles").thread.id
    at.button(key="chat_new").click().run()
    assert "thread" not in at.query_params
    assert "Go on with a thread" in shown(at)
    said(at, kept, "About hay")
    at.session_state["chat_threads"] = True
    at.run()
    at.text_input(key="chat_search").set_value("NEEDLE").run()
    assert [key for button in at.main.button if (key := str(button.key)).startswith("chat_open_")] == [
        f"chat_open_{first}"
    ]
    at.button(key=f"chat_open_{first}").click().run()
    assert at.session_state["chat_thread"] == first
    assert first in at.query_params["thread"]
    assert texts(at)[0] == "About needles"
    at.session_state["chat_threads"] = True
    at.run()
    at.button(key=f"chat_rename_{first}").click().run()
    at.session_state["chat_threads"] = True
    at.run()
    at.text_input(key=f"chat_name_{first}").set_value("Pins").run()
    assert "Pins" in [one.thread.name for one in kept.threads()]
    for button in ("delete", "keep", "delete", "gone"):
        at.session_state["chat_threads"] = True
        at.run()
        at.button(key=f"chat_{button}_{first}").click().run()
    assert kept.conversation(first) is None
    assert at.session_state["chat_thread"] is None
    assert not [path for path in own_root.glob(".conv*") if b"needles" in path.read_bytes()]
    gone = followed_link("chat", run="tiny", layer="1", thread=first)
    assert "The thread of this link was deleted" in "".join(warning.value for warning in gone.main.warning)


def test_settings_are_the_threads_and_go_into_its_answers(at: AppTest, kept: Conversations) -> None:
    at.slider(key="chat_tokens").set_value(10).run()
    at.text_area(key="chat_system").set_value("Ok.").run()
    conversation = said(at, kept, "a")
    answer = last(conversation)
    assert answer.answer is not None
    assert answer.answer.settings == Settings("tiny", max_new_tokens=10, system="Ok.")
    assert conversation.thread.settings == answer.answer.settings
    at.slider(key="chat_temperature").set_value(0.0).run()
    changed = kept.conversation(conversation.thread.id)
    assert changed is not None
    assert changed.thread.settings.temperature == 0
    # What another browser chose shows here.
    kept.set_settings(conversation.thread.id, Settings("tiny", max_new_tokens=20))
    at.run()
    assert at.slider(key="chat_tokens").value == 20
    assert at.slider(key="chat_temperature").value == 0.8
    at.button(key="chat_new").click().run()
    assert at.slider(key="chat_tokens").value == 10


def test_how_long_threads_are_kept_is_chosen_here(at: AppTest, kept: Conversations) -> None:
    said(at, kept, "a")
    at.session_state["chat_threads"] = True
    at.run()
    assert str(kept.path) in shown(at)
    at.selectbox(key="chat_retention").set_value("30 days").run()
    assert kept.retention_days == 30


def test_a_damaged_file_is_told_of_in_a_box_and_left_alone(dashboard: Open, own_root: Path) -> None:
    path = conversations_path(own_root)
    path.write_bytes(b"no database" * 100)
    at = dashboard(own_root, "chat")
    assert any("damaged" in error.value for error in at.error)
    assert path.read_bytes() == b"no database" * 100


def test_a_dense_run_talks_too(dashboard: Open, tmp_path: Path) -> None:
    config = make_config(write_corpus(tmp_path / "texts.jsonl"), model__first_dense_layers=2, training__seq_len=64)
    train(RunFolder("dense", tmp_path / "runs"), config)
    at = dashboard(tmp_path / "runs", "chat")
    kept = Conversations(conversations_path(tmp_path / "runs"))
    answer = last(said(at, kept, "a"))
    assert answer.answer is not None
    assert answer.answer.tokens
    assert "It has no experts to tell apart." in shown(at)
    assert f"chat_change_{answer.id}" not in at.session_state
    assert chat_loaders.live_subject("dense", tmp_path / "runs") is not None
    assert chat_loaders.live_subject("nobody", tmp_path / "runs") is None
