"""Answers kept on disk while a server is asked, so that an interrupted command goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from moe_core.errors import ServerError, TraceError, UsageError
from moe_core.files import lock

Answer = dict[str, Any]


def kept_beside(trace: str | Path) -> Path:
    """Where the answers are kept until the trace is written."""
    return Path(f"{trace}.answers.jsonl")


@dataclass(frozen=True)
class Question:
    """What was asked: answers to another question are no answers to this one."""

    engine: str
    model: str
    max_new_tokens: int
    documents: int
    texts: str
    """SHA-256 of the documents, their domains and their sources."""


class KeptAnswers:
    """A file of JSON lines: the question, then answers as they came, each with the number of its document.

    One process at a time has it open. A line that a kill cut off is dropped; its document is asked anew.
    """

    def __init__(self, path: Path, question: Question, check: Callable[[int, Answer], None]) -> None:
        """Open the file or begin it. `check(document, answer)` raises for an answer that is none.

        Raises UsageError where it holds answers to another question or another command writes to it, TraceError for a
        damaged one.
        """
        self.path = path
        self._places: dict[int, int] = {}
        """Where the line of each document begins."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._file: BinaryIO = path.open("r+b")
        try:
            self._take()
            self._end = self._read(question, check)
            self._file.truncate(self._end)
            if not self._end:
                self._append({"question": asdict(question)})
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> KeptAnswers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if not self._places:
            self.remove()  # nothing was answered that could be lost

    def __contains__(self, document: int) -> bool:
        return document in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, document: int) -> Answer:
        self._file.seek(self._places[document])
        answer: Answer = json.loads(self._file.readline())["answer"]
        return answer

    def add(self, document: int, answer: Answer) -> None:
        """Keep an answer; once this returns a kill does not lose it."""
        self._places[document] = self._append({"document": document, "answer": answer})

    def remove(self) -> None:
        """Delete the file: the trace has been written."""
        self.path.unlink(missing_ok=True)

    def _append(self, line: dict[str, Any]) -> int:
        begin = self._end
        try:
            content = json.dumps(line).encode() + b"\n"
        except RecursionError:
            raise ServerError("an answer of the server nests deeper than any engine's; check the address") from None
        self._file.seek(begin)
        self._file.write(content)
        self._file.flush()
        self._end = self._file.tell()
        return begin

    def _take(self) -> None:
        try:
            lock(self._file, wait=False)
        except OSError:
            raise UsageError(
                f"another command is asking for the same trace ({str(self.path)!r} is in use); wait for it, or choose "
                "another --out"
            ) from None

    def _read(self, question: Question, check: Callable[[int, Answer], None]) -> int:
        """Learn what is there; the length of what is whole."""
        end = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break  # the write that a kill cut off
            self._learn(line, number, end, question, check)
            end += len(line)
        return end

    def _learn(
        self, line: bytes, number: int, begin: int, question: Question, check: Callable[[int, Answer], None]
    ) -> None:
        try:
            found = json.loads(line)
            if number == 1:
                asked = Question(**found["question"])
            else:
                document, answer = found["document"], found["answer"]
                if not isinstance(answer, dict) or not 0 <= document < question.documents:
                    raise ValueError(document)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise TraceError(
                f"the answers kept in {str(self.path)!r} are damaged at line {number}; remove the file to ask anew"
            ) from None
        if number > 1:
            check(document, answer)
            self._places[document] = begin
        elif asked != question:
            name = next(name for name, value in asdict(asked).items() if value != getattr(question, name))
            was, now = getattr(asked, name), getattr(question, name)
            raise UsageError(
                f"{str(self.path)!r} keeps answers to another question ({name} {was!r}, now {now!r}); ask as before to "
                "go on, or remove it, or choose another --out"
            )
