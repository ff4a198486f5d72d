"""The file that conversations are kept in: an SQLite database that survives a kill and never takes another's place.

A connection for each operation, which costs less than a millisecond, so that any thread and any process may use it. The
log is written ahead (WAL): readers and the writer do not hold each other up.
"""

from __future__ import annotations

import os
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from moe_core.errors import NoSpaceError, RunBusyError, RunError
from moe_core.files import TEMPORARY_PREFIX
from moe_core.runs.names import checkpoints_root

FILE = ".conversations.sqlite"
"""No run has such a name, as those begin otherwise."""
VERSION = 1
_APPLICATION = 0x4D6F6573  # "Moes"
_BUSY_SECONDS = 10.0
_PURGE = "purge"
"""Of the table `facts`: something was deleted and may still lie in the files."""
_TABLES = """
CREATE TABLE facts (key TEXT PRIMARY KEY, value REAL) STRICT;
CREATE TABLE threads (
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  created_at REAL NOT NULL,
  used_at REAL NOT NULL,
  settings TEXT NOT NULL
) STRICT;
CREATE TABLE messages (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  thread TEXT NOT NULL REFERENCES threads (id) ON DELETE CASCADE,
  parent INTEGER REFERENCES messages (id) ON DELETE CASCADE CHECK (parent < id),
  role TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
  text TEXT NOT NULL,
  created_at REAL NOT NULL,
  shown INTEGER NOT NULL DEFAULT 1,        -- among those at its place
  compared_with INTEGER REFERENCES messages (id) ON DELETE CASCADE,
  settings TEXT,                           -- of an answer, as what follows
  change TEXT,
  writer TEXT,
  ending TEXT,
  error TEXT NOT NULL DEFAULT '',
  tokens INTEGER NOT NULL DEFAULT 0,
  prompt_tokens INTEGER NOT NULL DEFAULT 0,
  left_out INTEGER NOT NULL DEFAULT 0,
  first_seconds REAL NOT NULL DEFAULT 0,
  seconds REAL NOT NULL DEFAULT 0,
  heard_at REAL NOT NULL DEFAULT 0,
  stop_wanted INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX messages_of_thread ON messages (thread);
CREATE INDEX messages_of_parent ON messages (parent);
CREATE INDEX messages_beside ON messages (compared_with);
CREATE TABLE tokens (
  message INTEGER NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
  number INTEGER NOT NULL,
  shape TEXT NOT NULL, token_ids BLOB NOT NULL, lengths BLOB NOT NULL, pieces BLOB NOT NULL,
  experts BLOB NOT NULL, weights BLOB NOT NULL, losses BLOB NOT NULL,
  PRIMARY KEY (message, number)
) STRICT;
"""


def conversations_path(root: str | Path | None = None) -> Path:
    """Where the conversations beside the runs in this folder are kept; `root` as in checkpoints_root."""
    return checkpoints_root(root) / FILE


class Database:
    """The file. It is made when something is kept for the first time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """What is kept, as it is now. Raises RunError in one line where it cannot be read."""
        with self._told():
            if not self.path.exists():
                with closing(_connected(":memory:")) as nothing:
                    nothing.executescript(_TABLES)
                    yield nothing
                return
            with closing(self._opened()) as opened:
                opened.execute("BEGIN")
                yield opened

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """All that is done in it, or nothing of it. Raises RunError in one line where it cannot be written."""
        with self._told():
            self._make()
            with closing(self._opened()) as opened:
                opened.execute("BEGIN IMMEDIATE")
                yield opened
                opened.execute("COMMIT")

    def mark_deleted(self, opened: sqlite3.Connection) -> None:
        """Within `writing`: something was deleted, so that `purge` has to follow, after a crash too."""
        opened.execute("INSERT OR REPLACE INTO facts VALUES (?, 1)", (_PURGE,))

    def purge(self) -> None:
        """Write the file anew if something was deleted, so that no byte of it is left in it or in its log.

        Raises RunBusyError where somebody reads for long meanwhile; it is then done at the next call.
        """
        with self.reading() as opened:
            if not opened.execute("SELECT 1 FROM facts WHERE key = ?", (_PURGE,)).fetchone():
                return
        with self._told(), closing(self._opened()) as opened:
            opened.execute("VACUUM")
            deadline = time.monotonic() + _BUSY_SECONDS
            while opened.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                if time.monotonic() > deadline:
                    raise RunBusyError(
                        f"what was deleted is no longer shown, but still lies in {str(self.path)!r}, which another "
                        "program is reading: it is removed the next time"
                    )
                time.sleep(0.05)
            opened.execute("DELETE FROM facts WHERE key = ?", (_PURGE,))

    def _make(self) -> None:
        """The file with its tables, which nobody else can look into, if there is none.

        It comes whole under its name: a file that SQLite has open is never opened here, as closing it would take
        SQLite's locks away.
        """
        if self.path.exists():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
        try:
            os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            with closing(_connected(str(new))) as opened:
                opened.execute("PRAGMA journal_mode = WAL")
                opened.executescript(_TABLES)
                opened.execute(f"PRAGMA application_id = {_APPLICATION}")
                opened.execute(f"PRAGMA user_version = {VERSION}")
            with suppress(FileExistsError):  # another one was quicker
                os.link(new, self.path)
        finally:
            new.unlink(missing_ok=True)

    def _opened(self) -> sqlite3.Connection:
        opened = _connected(str(self.path))
        try:
            self._check(opened)
        except BaseException:
            opened.close()
            raise
        return opened

    def _check(self, opened: sqlite3.Connection) -> None:
        """Raises RunError for a file that is not ours, or of a newer version."""
        application = opened.execute("PRAGMA application_id").fetchone()[0]
        version = opened.execute("PRAGMA user_version").fetchone()[0]
        place = repr(str(self.path))
        if application != _APPLICATION:
            raise RunError(f"{place} holds no conversations but something else; set it aside to begin anew")
        if version != VERSION:
            raise RunError(
                f"the conversations in {place} were kept by another version of Moescope (format {version}, this one "
                f"reads {VERSION}); use that version, or set the file aside to begin anew"
            )

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What SQLite and the disk say, in a sentence of ours."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._said(error) from error
        except OSError as error:
            raise RunError(
                f"the conversations cannot be kept in {str(self.path)!r}: {error.strerror or error}; "
                "check that this folder can be written"
            ) from error

    def _said(self, error: sqlite3.Error) -> RunError:
        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        place = repr(str(self.path))
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return RunBusyError(f"another program is writing {place}; nothing was changed, try again")
        if code == sqlite3.SQLITE_FULL:
            return NoSpaceError(f"the disk of {place} is full; free some space and try again")
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return RunError(f"the conversations in {place} cannot be opened ({error}); check who may write there")
        return RunError(
            f"the conversations in {place} are damaged ({error}); nothing was changed: put a copy in its place, or set "
            "the file aside to begin anew"
        )


def _connected(place: str) -> sqlite3.Connection:
    """A connection that decides itself where its transactions begin."""
    opened = sqlite3.connect(place, timeout=_BUSY_SECONDS, isolation_level=None)
    opened.execute("PRAGMA foreign_keys = ON")
    opened.execute("PRAGMA secure_delete = ON")  # what is deleted or replaced becomes zeros
    opened.execute("PRAGMA synchronous = NORMAL")
    opened.execute("PRAGMA temp_store = MEMORY")  # VACUUM leaves no copy in a temporary folder
    opened.execute("PRAGMA trusted_schema = OFF")
    opened.create_function("folded", 1, str.casefold, deterministic=True)
    return opened
