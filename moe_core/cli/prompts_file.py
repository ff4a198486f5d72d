"""Many prompts out of a file: `moescope generate --prompts-file`."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from moe_core.cli.exits import as_one_line
from moe_core.cli.output import Output, progress_on_stderr
from moe_core.cli.writing import Written
from moe_core.errors import DataError, UsageError, first_fault
from moe_core.words import count_of

if TYPE_CHECKING:
    from moe_core.inference.engine import Generation, Request
    from moe_core.inference.protocol import LanguageModel

STDIN = "-"
MOST_BYTES = 2**28
_EXAMPLE = '{"prompt": "The tenant shall"}'


class Prompt(NamedTuple):
    """A prompt out of a file, as a request."""

    place: str
    """Where it stands, for people: "line 3 of 'prompts.txt'"."""
    text: str
    request: Request


class PromptLine(BaseModel):
    """A line of JSON; what it leaves out is as the command's options say."""

    model_config = ConfigDict(extra="forbid", strict=True)
    prompt: str
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None


def read_prompts(name: str, common: Request) -> list[Prompt]:
    """A prompt for each line that is not blank: of text, or of JSON where the first one is an object with "prompt".

    `name`: a file, or - for standard input. `common`: what a prompt does not say itself. Raises DataError for a file
    that cannot be read or has no prompt, UsageError naming the line for one that is no prompt.
    """
    where = "standard input" if name == STDIN else repr(name)
    lines = [(number, line) for number, line in enumerate(_text(name, where).split("\n"), 1) if line.strip()]
    if not lines:
        raise DataError(f"{where} has no prompt; expected one in each line, as text or as JSON with the key prompt")
    as_json = _is_prompt_line(lines[0][1])
    return [_prompt(f"line {number} of {where}", line.rstrip("\r"), common, as_json) for number, line in lines]


def answer_prompts(
    model: LanguageModel, prompts: Sequence[Prompt], output: Output, prefix_cache: Path | None = None
) -> None:
    """Answer all, many at once, and tell each in its turn: a line of text, or of JSON.

    Raises UsageError or DataError, naming the line, for a prompt that the model cannot read; those before it are told.
    """
    from moe_core.inference.engine import Engine
    from moe_core.inference.scheduler import SLOTS, Scheduler

    began = time.perf_counter()
    tokens = done = 0
    asked: deque[tuple[Prompt, Generation]] = deque()
    engine = Engine(model, prefix_cache=prefix_cache)
    with progress_on_stderr() as progress, Scheduler(engine, slots=SLOTS, queue=SLOTS) as scheduler:
        if scheduler.takes_turns:
            print(f"requests take turns: {scheduler.takes_turns}", file=sys.stderr)
        for prompt in (*prompts, None):
            while asked and (prompt is None or len(asked) == 2 * SLOTS):
                tokens += _tell(*asked.popleft(), model, output)
                done += 1
                progress("prompts", done, len(prompts))
            if prompt is not None:
                try:
                    asked.append((prompt, scheduler.start(prompt.request, whole=True)))
                except (UsageError, DataError) as error:
                    raise type(error)(f"{prompt.place}: {error}") from None
    seconds = time.perf_counter() - began
    said = f"{count_of(done, 'prompt')}, {count_of(tokens, 'token')} in {seconds:.1f} s"
    print(f"{said}, {tokens / seconds:.0f} tokens/s", file=sys.stderr)


def _tell(prompt: Prompt, generation: Generation, model: LanguageModel, output: Output) -> int:
    """Wait for an answer and print it; the number of its tokens."""
    written = Written(model)
    for event in generation:
        written.add(event)
    if not output.json_only:
        output.say(as_one_line(written.text))
    change = prompt.request.intervention
    output.line(
        {
            "prompt": prompt.text,
            "intervention": None if change is None else asdict(change),
            "text": written.text,
            "reason": written.reason,
            "prompt_tokens": written.prompt_tokens,
            "tokens": written.tokens,
        }
    )
    return len(written.tokens)


def _text(name: str, where: str) -> str:
    try:
        if name == STDIN:
            content = sys.stdin.buffer.read(MOST_BYTES + 1)
        else:
            with Path(name).open("rb") as file:
                content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise DataError(f"{where} is larger than {MOST_BYTES // 2**20} MiB; give the prompts in parts")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is no UTF-8 text (byte {error.start}); expected one prompt in each line") from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the prompts in {where}: {getattr(error, 'strerror', None) or error}") from None


def _is_prompt_line(line: str) -> bool:
    try:
        found: Any = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and "prompt" in found


def _prompt(place: str, line: str, common: Request, as_json: bool) -> Prompt:
    if not as_json:
        return Prompt(place, line, replace(common, prompt=line))
    try:
        found = PromptLine.model_validate_json(line)
    except ValidationError as error:
        fault = first_fault(error)
        reason = fault.line if fault.key else fault.message
        raise UsageError(f"{place}: {reason}; expected JSON such as {_EXAMPLE}") from None
    own = found.model_dump(exclude={"prompt", "stop"}, exclude_none=True)
    try:
        stop = common.stop if found.stop is None else found.stop
        request = replace(common, prompt=found.prompt, sampling=replace(common.sampling, **own), stop=stop)
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from None
    return Prompt(place, found.prompt, request)
