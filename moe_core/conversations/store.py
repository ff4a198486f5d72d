"""The conversations that are kept: threads, their messages in a tree, and which experts wrote each answer.

Editing a message makes a branch beside it, answering again one more answer; which of them is shown is kept too. Any
thread and any process may call; each call sees, and leaves behind, whole conversations.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from moe_core.conversations.database import Database, conversations_path
from moe_core.conversations.threads import (
    Answer,
    Conversation,
    Ending,
    Found,
    Message,
    Settings,
    Thread,
    Writer,
    WrittenTokens,
)
from moe_core.conversations.token_blobs import TokenBlobs, joined, packed, unpacked
from moe_core.errors import RunBusyError, RunError, UsageError, first_fault
from moe_core.routing.instruments.change import Change

MOST_CHARACTERS = 200_000
"""Of a message; far more than models of any size read at once here."""
NAME_CHARACTERS, EXCERPT_CHARACTERS = 60, 80
_SETTINGS, _WRITER, _CHANGE = TypeAdapter(Settings), TypeAdapter(Writer), TypeAdapter(Change)
_RETENTION = "retention_days"
_DAY_SECONDS = 86_400
T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """What is known of an answer besides its text."""

    tokens: int = 0
    prompt_tokens: int = 0
    left_out: int = 0
    first_seconds: float = 0.0
    seconds: float = 0.0


class Conversations:
    """Those in one file; see database.conversations_path. Every method raises RunError, in one line, where it cannot
    be read or written, and RunError too for a thread or message that is gone."""

    def __init__(self, path: Path | None = None) -> None:
        self._database = Database(path or conversations_path())

    @property
    def path(self) -> Path:
        return self._database.path

    def threads(self, search: str = "") -> list[Found]:
        """All threads, or those with this text in their name or in any message of any branch; the last used first.

        The text is looked for as it is, whatever case its letters have.
        """
        with self._database.reading() as opened:
            rows = opened.execute("SELECT id, name, created_at, used_at, settings FROM threads").fetchall()
            threads = sorted(map(_thread, rows), key=lambda thread: (thread.used_at, thread.id), reverse=True)
            if not search.strip():
                return [Found(thread) for thread in threads]
            hits = opened.execute(
                "SELECT thread, max(id), text FROM messages WHERE instr(folded(text), folded(?)) GROUP BY thread",
                (search,),
            )
            found = {thread: (message, _excerpt(text, search)) for thread, message, text in hits}
        wanted = search.casefold()
        return [
            Found(thread, *found.get(thread.id, (None, "")))
            for thread in threads
            if thread.id in found or wanted in thread.name.casefold()
        ]

    def new_thread(self, settings: Settings, name: str = "") -> str:
        """Its id. Without a name it is called by its first message."""
        thread, now = secrets.token_hex(16), time.time()
        with self._database.writing() as opened:
            values = (thread, _name(name), now, now, _text(_SETTINGS, settings))
            opened.execute("INSERT INTO threads VALUES (?, ?, ?, ?, ?)", values)
        return thread

    def rename(self, thread: str, name: str) -> None:
        """Raises UsageError for an empty name."""
        if not _name(name):
            raise UsageError("a thread's name is empty; expected at least one character")
        with self._database.writing() as opened:
            _done(opened.execute("UPDATE threads SET name = ? WHERE id = ?", (_name(name), thread)))

    def set_settings(self, thread: str, settings: Settings) -> None:
        """For the next answers of a thread."""
        with self._database.writing() as opened:
            values = (_text(_SETTINGS, settings), thread)
            _done(opened.execute("UPDATE threads SET settings = ? WHERE id = ?", values))

    def delete(self, thread: str) -> None:
        """With all its messages, from the files too. One that is gone already is no error."""
        self._delete("DELETE FROM threads WHERE id = ?", thread)

    def delete_all(self) -> None:
        self._delete("DELETE FROM threads")

    @property
    def retention_days(self) -> float | None:
        """After so many days without a message a thread is deleted; None = never."""
        with self._database.reading() as opened:
            row = opened.execute("SELECT value FROM facts WHERE key = ?", (_RETENTION,)).fetchone()
        return None if row is None else row[0]

    @retention_days.setter
    def retention_days(self, days: float | None) -> None:
        if days is not None and not 0 < days < float("inf"):
            raise UsageError(f"retention_days = {days} is out of range; expected more than 0")
        with self._database.writing() as opened:
            opened.execute("DELETE FROM facts WHERE key = ?", (_RETENTION,))
            if days is not None:
                opened.execute("INSERT INTO facts VALUES (?, ?)", (_RETENTION, float(days)))

    def tidy(self) -> None:
        """Delete what is older than it is to be kept, and what a deletion that was broken off has left in the files."""
        days = self.retention_days
        oldest = 0.0 if days is None else time.time() - days * _DAY_SECONDS
        with self._database.reading() as opened:
            is_old = opened.execute("SELECT 1 FROM threads WHERE used_at < ?", (oldest,)).fetchone()
        if is_old:
            self._delete("DELETE FROM threads WHERE used_at < ?", oldest)
        else:
            with suppress(RunBusyError):
                self._database.purge()

    def conversation(self, thread: str) -> Conversation | None:
        """A thread as it is shown; None where there is none of this id."""
        with self._database.reading() as opened:
            opened.row_factory = sqlite3.Row
            found = opened.execute(
                "SELECT id, name, created_at, used_at, settings FROM threads WHERE id = ?", (thread,)
            ).fetchone()
            rows = opened.execute("SELECT * FROM messages WHERE thread = ? ORDER BY id", (thread,)).fetchall()
        return None if found is None else Conversation(_thread(found), _shown_branch(rows))

    def fingerprint(self, thread: str) -> str:
        """Another one once anything of the thread but the text of an answer being written has changed; cheap."""
        with self._database.reading() as opened:
            row = opened.execute(
                "SELECT name, threads.settings, count(messages.id), total(messages.id * shown), count(ending)"
                " FROM threads LEFT JOIN messages ON thread = threads.id WHERE threads.id = ?",
                (thread,),
            ).fetchone()
        return repr(row)

    def path_to(self, message: int) -> list[Message]:
        """The messages from the first one to this one, whatever branch is shown. Raises RunError if it is gone."""
        with self._database.reading() as opened:
            opened.row_factory = sqlite3.Row
            rows = opened.execute(
                "WITH RECURSIVE path (id) AS (VALUES (?) UNION SELECT parent FROM messages JOIN path USING (id))"
                " SELECT * FROM messages JOIN path USING (id) ORDER BY id",
                (message,),
            ).fetchall()
        if not rows or rows[-1]["id"] != message:
            raise RunError(_GONE)
        return [_message(row, (row["id"],)) for row in rows]

    def say(self, thread: str, text: str, parent: int | None) -> int:
        """A user's message behind `parent`, None of the first one; beside those that are there, in a branch that is
        shown. Its id. Raises UsageError for one that is empty, too long or no Unicode."""
        _check_message(text)
        with self._database.writing() as opened:
            message = _insert(opened, thread, parent, "user", text)
            name = "CASE WHEN name = '' THEN ? ELSE name END"
            values = (time.time(), _name(text), thread)
            opened.execute(f"UPDATE threads SET used_at = ?, name = {name} WHERE id = ?", values)
        return message

    def begin_answer(
        self, parent: int, settings: Settings, change: Change | None = None, compared_with: int | None = None
    ) -> int:
        """An answer to the message `parent` without a word so far, shown in place of others, or to be compared with
        one of them. Its id."""
        with self._database.writing() as opened:
            found = opened.execute("SELECT thread FROM messages WHERE id = ?", (parent,)).fetchone()
            if found is None:
                raise RunError(_GONE)
            message = _insert(opened, found[0], parent, "assistant", "", shown=compared_with is None)
            values = (
                _text(_SETTINGS, settings),
                None if change is None else _text(_CHANGE, change),
                compared_with,
                time.time(),
                message,
            )
            opened.execute(
                "UPDATE messages SET settings = ?, change = ?, compared_with = ?, heard_at = ? WHERE id = ?", values
            )
            opened.execute("UPDATE threads SET used_at = ? WHERE id = ?", (time.time(), found[0]))
        return message

    def thread_of(self, message: int) -> str:
        """The id of its thread. Raises RunError if it is gone."""
        with self._database.reading() as opened:
            row = opened.execute("SELECT thread FROM messages WHERE id = ?", (message,)).fetchone()
        if row is None:
            raise RunError(_GONE)
        return str(row[0])

    def name_writer(self, message: int, writer: Writer) -> None:
        """Who writes an answer."""
        with self._database.writing() as opened:
            _done(opened.execute("UPDATE messages SET writer = ? WHERE id = ?", (_text(_WRITER, writer), message)))

    def add(self, message: int, text: str, tokens: WrittenTokens | None, progress: Progress) -> bool:
        """What was written since the last time; also where that is nothing, so that others see somebody writes.

        Whether to go on: not where somebody wants it to stop, nor where it was deleted.
        """
        with self._database.writing() as opened:
            values = (text, *_values(progress), time.time(), message)
            opened.execute(
                "UPDATE messages SET text = text || ?, tokens = ?, prompt_tokens = ?, left_out = ?, first_seconds = ?,"
                " seconds = ?, heard_at = ? WHERE id = ?",
                values,
            )
            row = opened.execute("SELECT stop_wanted FROM messages WHERE id = ?", (message,)).fetchone()
            if row is not None and tokens is not None and len(tokens.token_ids):
                opened.execute(
                    "INSERT INTO tokens SELECT ?, 1 + coalesce(max(number), 0), ?, ?, ?, ?, ?, ?, ? FROM tokens"
                    " WHERE message = ?",
                    (message, *packed(tokens), message),
                )
        return row is not None and not row[0]

    def end_answer(self, message: int, ending: Ending, error: str = "") -> None:
        """It will not go on. One that was deleted meanwhile is no error."""
        with self._database.writing() as opened:
            opened.execute("UPDATE messages SET ending = ?, error = ? WHERE id = ?", (ending, error, message))

    def want_stop(self, message: int) -> None:
        """Whoever writes this answer, in whatever process, is to stop."""
        with self._database.writing() as opened:
            opened.execute("UPDATE messages SET stop_wanted = 1 WHERE id = ?", (message,))

    def show(self, message: int) -> None:
        """Show the branches that lead to this message, and in them those that were shown last. Raises RunError if it is
        gone."""
        with self._database.writing() as opened:
            at: int | None = message
            while at is not None:
                row = opened.execute(
                    "SELECT thread, parent, compared_with FROM messages WHERE id = ?", (at,)
                ).fetchone()
                if row is None:
                    raise RunError(_GONE)
                thread, parent, compared_with = row
                if compared_with is not None:
                    at = compared_with
                    continue
                opened.execute(
                    "UPDATE messages SET shown = (id = ?) WHERE thread = ? AND parent IS ? AND compared_with IS NULL",
                    (at, thread, parent),
                )
                at = parent

    def tokens(self, message: int) -> WrittenTokens | None:
        """What an answer consists of; None while there is nothing. Raises RunError where it is damaged."""
        with self._database.reading() as opened:
            rows = opened.execute(
                "SELECT shape, token_ids, lengths, pieces, experts, weights, losses FROM tokens WHERE message = ?"
                " ORDER BY number",
                (message,),
            ).fetchall()
        return joined([unpacked(TokenBlobs(*row)) for row in rows])

    def _delete(self, statement: str, *values: object) -> None:
        with self._database.writing() as opened:
            opened.execute(statement, values)
            self._database.mark_deleted(opened)
        self._database.purge()


_GONE = "this message or its thread was deleted, here or in another browser; open another thread"


def _insert(
    opened: sqlite3.Connection, thread: str, parent: int | None, role: str, text: str, *, shown: bool = True
) -> int:
    known = opened.execute(
        "SELECT 1 FROM threads WHERE id = ?"
        " AND (? IS NULL OR EXISTS (SELECT 1 FROM messages WHERE id = ? AND thread = ?))",
        (thread, parent, parent, thread),
    ).fetchone()
    if known is None:
        raise RunError(_GONE)
    if shown:
        opened.execute(
            "UPDATE messages SET shown = 0 WHERE thread = ? AND parent IS ? AND compared_with IS NULL", (thread, parent)
        )
    values = (thread, parent, role, text, time.time(), shown)
    added = opened.execute(
        "INSERT INTO messages (thread, parent, role, text, created_at, shown) VALUES (?, ?, ?, ?, ?, ?)", values
    )
    assert added.lastrowid is not None
    return added.lastrowid


def _shown_branch(rows: list[sqlite3.Row]) -> tuple[Message, ...]:
    following: dict[int | None, list[sqlite3.Row]] = defaultdict(list)
    compared: dict[int, list[Message]] = defaultdict(list)
    for row in rows:
        if row["compared_with"] is None:
            following[row["parent"]].append(row)
        else:
            compared[row["compared_with"]].append(_message(row, (row["id"],)))
    shown: list[Message] = []
    while here := following.get(shown[-1].id if shown else None):
        row = next((row for row in reversed(here) if row["shown"]), here[-1])
        siblings = tuple(one["id"] for one in here)
        shown.append(_message(row, siblings, tuple(compared[row["id"]])))
    return tuple(shown)


def _message(row: sqlite3.Row, siblings: tuple[int, ...], compared: tuple[Message, ...] = ()) -> Message:
    answer = None
    if row["role"] == "assistant":
        answer = Answer(
            settings=_read(_SETTINGS, row["settings"] or ""),
            change=None if row["change"] is None else _read(_CHANGE, row["change"]),
            writer=None if row["writer"] is None else _read(_WRITER, row["writer"]),
            ending=row["ending"],
            error=row["error"],
            tokens=row["tokens"],
            prompt_tokens=row["prompt_tokens"],
            left_out=row["left_out"],
            first_seconds=row["first_seconds"],
            seconds=row["seconds"],
            heard_at=row["heard_at"],
        )
    return Message(row["id"], row["parent"], row["role"], row["text"], row["created_at"], siblings, answer, compared)


def _thread(row: tuple[str, str, float, float, str] | sqlite3.Row) -> Thread:
    id, name, created_at, used_at, settings = row
    return Thread(id, name or "New thread", created_at, used_at, _read(_SETTINGS, settings))


def _values(progress: Progress) -> tuple[int, int, int, float, float]:
    return (progress.tokens, progress.prompt_tokens, progress.left_out, progress.first_seconds, progress.seconds)


def _check_message(text: str) -> None:
    if not text.strip():
        raise UsageError("the message is empty; expected at least one character")
    if len(text) > MOST_CHARACTERS:
        raise UsageError(
            f"the message has {len(text):,} characters; expected at most {MOST_CHARACTERS:,}: send a part of it"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError("the message holds half of a character, which no text may; type it again") from None


def _name(text: str) -> str:
    """On one line, and not long; what no text may hold is left out."""
    words = " ".join(text[: 4 * NAME_CHARACTERS].encode(errors="ignore").decode().split())
    return words if len(words) <= NAME_CHARACTERS else f"{words[: NAME_CHARACTERS - 1]}…"


def _excerpt(text: str, wanted: str) -> str:
    place = text.casefold().find(wanted.casefold())  # folding may move it by a few characters
    start = max(0, place - EXCERPT_CHARACTERS // 2)
    words = " ".join(text[start : start + 2 * EXCERPT_CHARACTERS].split())[:EXCERPT_CHARACTERS]
    return f"{'…' if start else ''}{words}{'…' if start + len(words) < len(text) else ''}"


def _done(changed: sqlite3.Cursor) -> None:
    if not changed.rowcount:
        raise RunError(_GONE)


def _text(kind: TypeAdapter[T], value: T) -> str:
    return kind.dump_json(value).decode()


def _read(kind: TypeAdapter[T], text: str) -> T:
    try:
        return kind.validate_json(text)
    except ValidationError as error:
        raise RunError(
            f"the conversations are damaged ({first_fault(error).line}); put a copy in their place, or set the file "
            "aside to begin anew"
        ) from error
