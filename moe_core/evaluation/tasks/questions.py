"""ARC, MMLU and GSM8K from the user's own JSONL files, in the fields that the published sets have.

arc    {"question": "...", "choices": {"text": ["...", ...], "label": ["A", ...]}, "answerKey": "A"}
mmlu   {"question": "...", "choices": ["...", "...", "...", "..."], "answer": 0 or "A"}
gsm8k  {"question": "...", "answer": "... #### 42"}
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_core.data.rows import read_text
from moe_core.errors import DataError, UsageError

MOST_QUESTIONS = {"arc": 500, "mmlu": 500, "gsm8k": 50}
"""Questions of a larger file that are asked, drawn by seed: fewer would already settle a small model's score."""
_LETTERS = "ABCD"


@dataclass(frozen=True)
class Questions:
    """The questions of one file."""

    path: str
    rows: tuple[dict[str, Any], ...]
    """In the fields above; answers of MMLU as numbers."""

    def drawn(self, most: int, seed: int) -> list[dict[str, Any]]:
        """All, or `most` of them drawn by seed, in the order of the file."""
        if len(self.rows) <= most:
            return list(self.rows)
        return [self.rows[at] for at in sorted(random.Random(seed).sample(range(len(self.rows)), most))]


def read_questions(task: str, path: str | Path) -> Questions:
    """Read a file for "arc", "mmlu" or "gsm8k".

    Raises UsageError when it is not there, DataError naming the line that is not what the task expects.
    """
    if not Path(path).is_file():
        raise UsageError(f"no file at --{task} {str(path)!r}; expected JSONL, one question a line (docs/evaluation.md)")
    try:
        lines = read_text(Path(path)).split("\n")
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                rows.append(_CHECKS[task](_parse_question(line)))
            except _WrongRowError as error:
                raise DataError(f"{str(path)!r} line {number} {error}; expected {_EXPECTED[task]}") from None
    if not rows:
        raise DataError(f"{str(path)!r} holds no question; expected lines such as {_EXPECTED[task]}")
    return Questions(str(path), tuple(rows))


class _WrongRowError(Exception):
    """What is wrong with a row, to go on after "line 3"."""


def _parse_question(line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise _WrongRowError(f"is not valid JSON ({reason})") from None
    if not isinstance(row, dict):
        raise _WrongRowError("is no JSON object")
    return row


def _arc(row: Mapping[str, Any]) -> dict[str, Any]:
    choices = row.get("choices")
    if not isinstance(choices, dict):
        raise _WrongRowError("has no choices with text and label")
    texts, labels = (
        _list_of_texts(choices.get("text"), "choices.text"),
        _list_of_texts(choices.get("label"), "choices.label"),
    )
    if len(texts) != len(labels) or len(texts) < 2 or len(set(labels)) < len(labels):
        raise _WrongRowError(f"has {len(texts)} texts and {len(set(labels))} different labels")
    if row.get("answerKey") not in labels:
        raise _WrongRowError(f"has the answerKey {str(row.get('answerKey'))[:20]!r}, which is none of its labels")
    return {
        "question": _text(row, "question"),
        "choices": {"text": texts, "label": labels},
        "answerKey": row["answerKey"],
    }


def _mmlu(row: Mapping[str, Any]) -> dict[str, Any]:
    choices, answer = _list_of_texts(row.get("choices"), "choices"), row.get("answer")
    if len(choices) != len(_LETTERS):
        raise _WrongRowError(f"has {len(choices)} choices")
    number = _LETTERS.find(answer) if isinstance(answer, str) and len(answer) == 1 else answer
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(_LETTERS):
        raise _WrongRowError(f"has the answer {str(answer)[:20]!r}")
    subject = row.get("subject") or ""
    if not isinstance(subject, str):
        raise _WrongRowError(f"has the subject {str(subject)[:20]!r}")
    return {"question": _text(row, "question"), "choices": choices, "answer": number, "subject": subject}


def _gsm8k(row: Mapping[str, Any]) -> dict[str, Any]:
    answer = _text(row, "answer")
    if not re.search(r"#### *-?[0-9]", answer):
        raise _WrongRowError("has an answer without #### and a number")
    return {"question": _text(row, "question"), "answer": answer}


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise _WrongRowError(f"has no text in the field {key}")
    return value


def _list_of_texts(value: Any, key: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise _WrongRowError(f"has no list of texts in the field {key}")
    return value


_CHECKS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {"arc": _arc, "mmlu": _mmlu, "gsm8k": _gsm8k}
_EXPECTED = {
    "arc": '{"question": "...", "choices": {"text": ["...", "..."], "label": ["A", "B"]}, "answerKey": "A"}',
    "mmlu": '{"question": "...", "choices": ["...", "...", "...", "..."], "answer": 0 to 3 or "A" to "D"}',
    "gsm8k": '{"question": "...", "answer": "... #### 42"}',
}
