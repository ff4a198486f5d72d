"""Threads of messages on disk: branches, search, what deletion means, and a file that is never taken for another."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.conversations.database import FILE, conversations_path
from moe_core.conversations.store import MOST_CHARACTERS, Conversations, Progress
from moe_core.conversations.threads import Settings, Writer, WrittenTokens
from moe_core.errors import RunBusyError, RunError, UsageError
from moe_core.routing.instruments.change import Change
from moe_core.runs import list_runs

ROOT = Path(__file__).resolve().parent.parent
DEMO = Settings("demo")
SECRET = "Rosebud-7141"
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(lambda text: text.strip())


@pytest.fixture
def kept(tmp_path: Path) -> Conversations:
    return Conversations(tmp_path / FILE)


def tokens_of(pieces: list[bytes], seed: int = 0) -> WrittenTokens:
    """As many tokens, of 3 layers with 2 of 8 experts each."""
    random = np.random.default_rng(seed)
    return WrittenTokens(
        token_ids=random.integers(0, 2048, len(pieces)).astype(np.int32),
        pieces=tuple(pieces),
        experts=random.integers(-1, 8, (len(pieces), 3, 2)).astype(np.int16),
        weights=random.integers(0, 1025, (len(pieces), 3, 2)).astype(np.float32) / 1024,
        losses=random.random(len(pieces)).astype(np.float32),
    )


def texts(kept: Conversations, thread: str) -> list[str]:
    conversation = kept.conversation(thread)
    assert conversation is not None
    return [message.text for message in conversation.messages]


def answered(kept: Conversations, question: int, text: str) -> int:
    answer = kept.begin_answer(question, DEMO)
    kept.add(answer, text, tokens_of([text.encode()]), Progress(1))
    kept.end_answer(answer, "length")
    return answer


def files_hold(folder: Path, text: str) -> list[str]:
    return [path.name for path in folder.iterdir() if text.encode() in path.read_bytes()]


def test_a_thread_keeps_its_messages_settings_and_how_an_answer_was_written(kept: Conversations) -> None:
    thread = kept.new_thread(DEMO)
    question = kept.say(thread, "What may\nthe tenant do?", None)
    changed = Settings("tiny", 20, 0.0, 0, 1.0, 2**31, "Be brief.")
    change = Change(2, 5, "reroute", ((0, 1),))
    answer = kept.begin_answer(question, changed, change)
    writer = Writer("run tiny, step 40", (0, 1, 2), 8, 2, 128, False)
    kept.name_writer(answer, writer)
    first, second = tokens_of([b"Pay ", "é".encode()[:1]]), tokens_of(["é".encode()[1:], b""], 1)
    assert kept.add(answer, "Pay ", first, Progress(2, 11, 1, 0.5, 0.1))
    assert kept.add(answer, "é", second, Progress(4, 11, 1, 0.5, 0.3))
    assert kept.add(answer, "", None, Progress(4, 11, 1, 0.5, 0.3))
    kept.end_answer(answer, "stop")

    found = Conversations(kept.path).conversation(thread)
    assert found is not None
    assert found.thread.name == "What may the tenant do?"
    assert found.thread.settings == DEMO
    asked, told = found.messages
    assert (asked.role, asked.text, asked.answer) == ("user", "What may\nthe tenant do?", None)
    assert (told.parent, told.role, told.text) == (asked.id, "assistant", "Pay é")
    assert told.answer is not None
    assert (told.answer.settings, told.answer.change, told.answer.writer) == (changed, change, writer)
    assert (told.answer.ending, told.answer.tokens, told.answer.left_out) == ("stop", 4, 1)
    assert told.answer.tokens_per_second == pytest.approx(10)
    tokens = kept.tokens(answer)
    assert tokens is not None
    assert tokens.pieces == (*first.pieces, *second.pieces)
    for name in ("token_ids", "experts", "weights", "losses"):
        both = np.concatenate([getattr(first, name), getattr(second, name)])
        assert np.array_equal(getattr(tokens, name), both)
        assert getattr(tokens, name).dtype == both.dtype


def test_an_edit_makes_a_branch_and_what_was_shown_in_each_is_kept(kept: Conversations) -> None:
    thread = kept.new_thread(DEMO)
    first = kept.say(thread, "first", None)
    one = answered(kept, first, "one")
    more = kept.say(thread, "more", one)
    two = answered(kept, first, "two")
    assert texts(kept, thread) == ["first", "two"]
    edited = kept.say(thread, "edited", None)
    assert texts(kept, thread) == ["edited"]
    conversation = kept.conversation(thread)
    assert conversation is not None
    assert conversation.messages[0].siblings == (first, edited)
    assert conversation.messages[0].place == 2
    kept.show(first)
    assert texts(kept, thread) == ["first", "two"]
    kept.show(one)
    assert texts(kept, thread) == ["first", "one", "more"]
    kept.show(edited)
    kept.show(more)
    assert texts(kept, thread) == ["first", "one", "more"]
    assert [message.id for message in kept.path_to(two)] == [first, two]


def test_a_changed_models_answer_stands_beside_and_in_no_branch(kept: Conversations) -> None:
    thread = kept.new_thread(DEMO)
    question = kept.say(thread, "first", None)
    answer = answered(kept, question, "one")
    beside = kept.begin_answer(question, DEMO, Change(0, 3, "zero"), answer)
    kept.add(beside, "other", tokens_of([b"other"]), Progress(1))
    conversation = kept.conversation(thread)
    assert conversation is not None
    shown = conversation.messages[-1]
    assert (shown.id, shown.siblings) == (answer, (answer,))
    assert [(one.id, one.text) for one in shown.compared] == [(beside, "other")]
    written = conversation.written(time.time())
    assert written is not None
    assert written.id == beside
    kept.show(beside)
    assert texts(kept, thread) == ["first", "one"]


@pytest.mark.parametrize("wanted", ["%", "_", "100%", "\\", '"', "'", "*", "a_b", "O'Neil", "NEAR(", "-x", "é", "É"])
def test_a_search_takes_the_text_as_text(kept: Conversations, wanted: str) -> None:
    for text in ("nothing of it", "100% a_b \\ \" ' * O'Neil NEAR( -x é"):
        kept.say(kept.new_thread(DEMO), text, None)
    found = kept.threads(wanted)
    assert len(found) == 1
    assert found[0].message is not None
    assert wanted.casefold() in found[0].excerpt.casefold()


def test_a_search_looks_in_all_branches_answers_and_names(kept: Conversations) -> None:
    thread = kept.new_thread(DEMO, "About rents")
    hidden = answered(kept, kept.say(thread, "first", None), "Straße in an answer")
    kept.say(thread, "second", None)
    other = kept.new_thread(DEMO)
    kept.say(other, "long " * 200 + "needle" + " long" * 200, None)
    assert [(one.thread.id, one.message) for one in kept.threads("STRASSE")] == [(thread, hidden)]
    assert [(one.thread.id, one.message) for one in kept.threads("RENTS")] == [(thread, None)]
    assert [one.thread.id for one in kept.threads()] == [other, thread]
    assert kept.threads("nobody said this") == []
    excerpt = kept.threads("Needle")[0].excerpt
    assert "needle" in excerpt
    assert len(excerpt) < 100
    kept.show(hidden)
    assert texts(kept, thread) == ["first", "Straße in an answer"]


def test_what_is_deleted_is_gone_from_the_files(kept: Conversations) -> None:
    other = kept.new_thread(DEMO, "kept")
    kept.say(other, "This stays.", None)
    thread = kept.new_thread(Settings("demo", system=SECRET), f"{SECRET} name")
    question = kept.say(thread, f"{SECRET} asked", None)
    answer = kept.begin_answer(question, DEMO)
    for number in range(60):
        kept.add(answer, f"{SECRET} {number} ", tokens_of([f"{SECRET} {number} ".encode()]), Progress(number))
    folder = kept.path.parent
    assert files_hold(folder, SECRET)
    other_connection = sqlite3.connect(kept.path)  # as a reader that has it open: then the log lives on
    other_connection.execute("SELECT count(*) FROM messages").fetchone()
    kept.delete(thread)
    assert files_hold(folder, SECRET) == []
    assert files_hold(folder, "This stays.")
    assert kept.conversation(thread) is None
    assert kept.tokens(answer) is None
    other_connection.close()
    kept.delete(thread)
    assert not kept.add(answer, "late", None, Progress())
    kept.end_answer(answer, "cancelled")
    for refused in (
        lambda: kept.say(thread, "late", question),
        lambda: kept.begin_answer(question, DEMO),
        lambda: kept.rename(thread, "late"),
        lambda: kept.set_settings(thread, DEMO),
        lambda: kept.show(question),
        lambda: kept.path_to(answer),
    ):
        with pytest.raises(RunError, match="was deleted"):
            refused()
    kept.delete_all()
    assert kept.threads() == []
    assert files_hold(folder, "This stays.") == []


def test_a_deletion_that_a_reader_held_up_is_made_good(kept: Conversations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_core.conversations.database._BUSY_SECONDS", 0.1)
    thread = kept.new_thread(DEMO)
    kept.say(thread, SECRET, None)
    reader = sqlite3.connect(kept.path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM messages").fetchone()
    with pytest.raises(RunBusyError, match="the next time"):
        kept.delete(thread)
    assert kept.threads() == []
    kept.tidy()
    assert files_hold(kept.path.parent, SECRET)
    reader.close()
    kept.tidy()
    assert files_hold(kept.path.parent, SECRET) == []


def test_threads_are_kept_until_deleted_or_for_as_many_days_as_is_said(
    kept: Conversations, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.say(kept.new_thread(DEMO), SECRET, None)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 8 * 86_400)
    kept.say(kept.new_thread(DEMO), "today", None)
    kept.tidy()
    assert len(kept.threads()) == 2
    assert kept.retention_days is None
    kept.retention_days = 7
    assert Conversations(kept.path).retention_days == 7
    kept.tidy()
    assert [one.thread.name for one in kept.threads()] == ["today"]
    assert files_hold(kept.path.parent, SECRET) == []
    kept.retention_days = None
    assert kept.retention_days is None
    with pytest.raises(UsageError, match="retention_days = 0"):
        kept.retention_days = 0


def test_nothing_is_made_by_looking_and_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    kept = Conversations(conversations_path(tmp_path / "runs"))
    assert kept.threads() == []
    assert kept.conversation("0" * 32) is None
    kept.tidy()
    assert not kept.path.exists()
    kept.new_thread(DEMO)
    assert kept.path.stat().st_mode & 0o777 == 0o600
    assert list_runs(kept.path.parent) == []
    assert [path.name for path in kept.path.parent.iterdir()] == [FILE]


def _of_another_version(path: Path) -> None:
    Conversations(path).new_thread(DEMO)
    with sqlite3.connect(path) as opened:
        opened.execute("PRAGMA user_version = 7")
    opened.close()


def _of_another_program(path: Path) -> None:
    with sqlite3.connect(path) as opened:
        opened.execute("CREATE TABLE bookmarks (url TEXT)")
    opened.close()


def _with_zeros_in_it(path: Path) -> None:
    kept = Conversations(path)
    kept.say(kept.new_thread(DEMO), "long " * 5000, None)
    data = bytearray(path.read_bytes())
    data[4096:20480] = bytes(16384)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_of_another_version, "another version of Moescope"),
        (_of_another_program, "something else"),
        (lambda path: path.write_bytes(b"no database at all" * 100), "damaged"),
        (lambda path: path.write_bytes(b""), "something else"),
        (_with_zeros_in_it, "damaged"),
    ],
)
def test_a_damaged_newer_or_foreign_file_is_told_of_and_left_alone(tmp_path: Path, make: object, says: str) -> None:
    path = tmp_path / FILE
    make(path)  # type: ignore[operator]
    before = path.read_bytes()
    kept = Conversations(path)
    for use in (kept.threads, lambda: kept.say(kept.new_thread(DEMO), "text", None), kept.delete_all, kept.tidy):
        with pytest.raises(RunError, match=says) as told:
            use()
        assert "\n" not in str(told.value)
    assert path.read_bytes() == before


def test_damaged_routing_is_told_of_and_the_text_is_there(kept: Conversations) -> None:
    thread = kept.new_thread(DEMO)
    answer = answered(kept, kept.say(thread, "first", None), "one")
    with sqlite3.connect(kept.path) as opened:
        opened.execute("UPDATE tokens SET shape = '3 3 2'")
    opened.close()
    with pytest.raises(RunError, match="routing of this answer is damaged"):
        kept.tokens(answer)
    assert texts(kept, thread) == ["first", "one"]


def test_a_folder_that_cannot_be_written_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot be kept in"):
        Conversations(tmp_path / "file" / FILE).new_thread(DEMO)


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "empty"), (" \n", "empty"), ("x" * (MOST_CHARACTERS + 1), "200,001 characters"), ("a\ud800", "half of a")],
)
def test_a_message_that_is_none_is_refused(kept: Conversations, text: str, says: str) -> None:
    thread = kept.new_thread(DEMO)
    with pytest.raises(UsageError, match=says):
        kept.say(thread, text, None)
    assert texts(kept, thread) == []


def test_a_name_is_one_line(kept: Conversations) -> None:
    thread = kept.new_thread(DEMO)
    kept.say(thread, "<b>one</b>\n two " + "x" * 100, None)
    assert kept.threads()[0].thread.name == "<b>one</b> two " + "x" * 44 + "…"
    kept.rename(thread, "  My\nthread ")
    kept.say(thread, "more", None)
    assert kept.threads()[0].thread.name == "My thread"
    with pytest.raises(UsageError, match="name is empty"):
        kept.rename(thread, " ")


def test_whoever_writes_an_answer_hears_that_it_is_to_stop(kept: Conversations) -> None:
    thread = kept.new_thread(DEMO)
    answer = kept.begin_answer(kept.say(thread, "first", None), DEMO)
    assert kept.add(answer, "one", None, Progress())
    Conversations(kept.path).want_stop(answer)
    assert not kept.add(answer, "two", None, Progress())
    conversation = kept.conversation(thread)
    assert conversation is not None
    assert conversation.written(time.time()) is not None
    assert conversation.written(time.time() + 60) is None  # its writer was killed
    kept.end_answer(answer, "cancelled")
    conversation = kept.conversation(thread)
    assert conversation is not None
    assert conversation.written(time.time()) is None
    assert texts(kept, thread) == ["first", "onetwo"]


WRITES_FOREVER = """
import sys
from pathlib import Path
from moe_core.conversations.store import Conversations, Progress
from moe_core.conversations.threads import Settings
sys.path.insert(0, "tests")
from test_conversations import tokens_of
kept = Conversations(Path(sys.argv[1]))
thread = kept.new_thread(Settings("demo"))
answer = kept.begin_answer(kept.say(thread, "count", None), Settings("demo"))
number = 0
while True:
    kept.add(answer, f"{number} ", tokens_of([f"{number} ".encode()]), Progress(number + 1))
    number += 1
    if number == 5:
        print(thread, flush=True)
"""


def test_kill_9_in_the_middle_of_an_answer_leaves_all_of_it_that_was_written(kept: Conversations) -> None:
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITES_FOREVER, str(kept.path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        thread = writer.stdout.readline().strip()
        time.sleep(0.05)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        conversation = kept.conversation(thread)
        assert conversation is not None
        answer = conversation.messages[-1]
        assert answer.answer is not None
        assert answer.answer.ending is None
        assert answer.answer.tokens >= 5
        assert answer.text == "".join(f"{number} " for number in range(answer.answer.tokens))
        tokens = kept.tokens(answer.id)
        assert tokens is not None
        assert b"".join(tokens.pieces).decode() == answer.text
    with sqlite3.connect(kept.path) as opened:
        assert opened.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    opened.close()


def test_many_threads_write_and_read_at_once(kept: Conversations) -> None:
    errors: list[Exception] = []
    thread = kept.new_thread(DEMO, "all")

    def write(number: int) -> None:
        try:
            own = Conversations(kept.path)
            answer = own.begin_answer(own.say(thread, f"question {number}", None), DEMO)
            for step in range(10):
                own.add(answer, f"{step} ", tokens_of([b"x"]), Progress(step))
                assert texts(own, thread)
            if number % 2:
                own.delete(own.new_thread(DEMO))
        except Exception as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert errors == []
    conversation = kept.conversation(thread)
    assert conversation is not None
    assert len(conversation.messages[0].siblings) == 6
    for question in conversation.messages[0].siblings:
        kept.show(question)
        assert texts(kept, thread)[1] == "".join(f"{step} " for step in range(10))


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from(["say", "edit", "again", "show"]), st.integers(0, 99), TEXTS), max_size=12))
def test_whatever_is_done_the_branch_shown_leads_to_what_was_done_last(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, str]]
) -> None:
    """Held against a tree in memory."""
    kept = Conversations(tmp_path_factory.mktemp("tree") / FILE)
    thread = kept.new_thread(DEMO)
    parents: dict[int, int | None] = {}
    said: dict[int, str] = {}

    def way_to(message: int | None) -> list[str]:
        return [] if message is None else [*way_to(parents[message]), said[message]]

    for kind, number, text in steps:
        conversation = kept.conversation(thread)
        assert conversation is not None
        shown = [message.id for message in conversation.messages]
        if kind == "show" and parents:
            message = sorted(parents)[number % len(parents)]
            kept.show(message)
            assert texts(kept, thread)[: len(way_to(message))] == way_to(message)
            continue
        if kind == "again" and shown:
            parent: int | None = shown[number % len(shown)]
            assert parent is not None
            message = answered(kept, parent, text)
        else:
            parent = parents[shown[number % len(shown)]] if kind == "edit" and shown else shown[-1] if shown else None
            message = kept.say(thread, text, parent)
        parents[message], said[message] = parent, text
        assert texts(kept, thread) == way_to(message)
        assert any(one.thread.id == thread for one in kept.threads(text))
