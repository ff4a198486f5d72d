"""The server's log: where it goes, and what can and cannot get into it."""

from __future__ import annotations

import errno
import io
import logging
import logging.handlers
from collections.abc import Iterator
from pathlib import Path

import pytest

from moe_core.server.logs import FILE, MOST_BYTES, OLDER_FILES, OURS, log_to


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root, raises = logging.getLogger(), logging.raiseExceptions
    handlers, levels = list(root.handlers), {name: logging.getLogger(name).level for name in ("root", *OURS)}
    yield
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
        handler.close()
    for name, level in levels.items():
        logging.getLogger(None if name == "root" else name).setLevel(level)
    logging.raiseExceptions = raises


def test_a_line_an_event_in_the_file_and_on_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = log_to("INFO", str(tmp_path / "made" / "logs"))
    assert path == tmp_path / "made" / "logs" / FILE
    logging.getLogger("moe_core.server.x").info("named %s", "a\nb\r2026 ERROR forged")
    logging.getLogger("moe_core.server.x").debug("not at this level")
    logging.getLogger("another.library").info("nor this")
    (line,) = path.read_text().splitlines()
    assert line.endswith("INFO moe_core.server.x: named a\\nb\\r2026 ERROR forged")
    assert capsys.readouterr().err.splitlines() == [line]


def test_it_starts_anew_before_it_is_large(tmp_path: Path) -> None:
    log_to("INFO", str(tmp_path))
    (handler,) = (h for h in logging.getLogger().handlers if isinstance(h, logging.handlers.RotatingFileHandler))
    assert (handler.maxBytes, handler.backupCount) == (MOST_BYTES, OLDER_FILES)
    handler.maxBytes = 1000
    for number in range(100):
        logging.getLogger("moe_core").info("line %d of some length", number)
    assert len(list(tmp_path.glob(f"{FILE}*"))) == 1 + OLDER_FILES
    assert all(file.stat().st_size <= 1000 for file in tmp_path.glob(f"{FILE}*"))


class FullDisk(io.StringIO):
    def write(self, _text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_takes_no_more_stops_no_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log_to("INFO", str(tmp_path))
    (handler,) = (h for h in logging.getLogger().handlers if isinstance(h, logging.handlers.RotatingFileHandler))
    handler.setStream(FullDisk()).close()
    logging.getLogger("moe_core").info("lost in the file")
    assert capsys.readouterr().err.endswith("moe_core: lost in the file\n")  # and nothing about the file
