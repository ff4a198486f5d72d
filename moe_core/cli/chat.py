"""`moescope chat`: talk with a model in the terminal, or through a pipe."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING

from moe_core.cli.chat_commands import Settings, is_command, obey
from moe_core.cli.exits import as_one_line, one_line, printable
from moe_core.cli.models import load_language_model
from moe_core.cli.options import Parser, add_model, add_step, command, existing_run, finish
from moe_core.cli.output import Output, table
from moe_core.cli.writing import Written, add_intervention, add_sampling, intervention_of, sampling_of
from moe_core.errors import MoescopeError
from moe_core.words import count_of

if TYPE_CHECKING:
    from moe_core.inference.chat_format import Message
    from moe_core.inference.engine import Engine, Generation
    from moe_core.routing import Intervention

MOST_LAYERS = 8
"""Columns of --verbose, so that a terminal can show them."""


def parser() -> Parser:
    """Its options."""
    parser = command(
        "chat",
        "Talk with a model. A line is a message; the answer appears as it is written. In between: params, new,\n"
        "help, exit. Ctrl+C stops an answer, twice at the prompt it ends the program, as Ctrl+D does.\n"
        "Through a pipe each line of standard input gets one line of standard output.",
        "chat --run demo",
        "chat --model DIR --system 'Answer in one sentence.' --verbose",
        "chat --run demo --temperature 0 --json < questions.txt",
    )
    add_model(parser, "answers")
    add_step(parser)
    parser.add_argument("--system", metavar="TEXT", default="", help="what the model is told before the first message")
    add_sampling(parser)
    parser.add_argument(
        "--verbose", action="store_true", help="after each answer, the experts that wrote each of its tokens"
    )
    add_intervention(parser)
    return finish(parser, chat)


def chat(arguments: argparse.Namespace, output: Output) -> int:
    """Answer messages until there are no more."""
    if arguments.run is not None:
        existing_run(arguments.run)
    intervention, sampling = intervention_of(arguments), sampling_of(arguments)
    from moe_core.inference.engine import Engine

    terminal = sys.stdin.isatty() and sys.stdout.isatty() and not output.json_only
    engine = Engine(load_language_model(arguments, arguments.step))
    keys = _CtrlC() if terminal else None
    talk = _Talk(engine, Settings(sampling, arguments.system), intervention, keys, arguments.verbose, output)
    talk.introduce()
    for line in keys.lines() if keys is not None else _piped_lines():
        try:
            if line.strip() and not talk.take(line):
                break
        except MoescopeError as error:
            if keys is None:
                raise
            print(f"error: {one_line(str(error))}", file=sys.stderr)
    return 0


@dataclass
class _Talk:
    """A conversation with a model."""

    engine: Engine
    settings: Settings
    intervention: Intervention
    keys: _CtrlC | None
    """Of a terminal, where somebody types and reads; None: lines come and go."""
    verbose: bool
    output: Output
    messages: list[Message] = field(default_factory=list)
    """Without the system's."""

    @property
    def is_base(self) -> bool:
        """Whether nobody taught the model to answer."""
        return self.engine.model.chat_template is None

    def introduce(self) -> None:
        """Say whom one talks with."""
        base = "is a base model: it goes on with the conversation as with any text, and was not trained to answer"
        self.say(f"{self.engine.model.name} {base if self.is_base else 'answers through its own chat template'}")
        self.say(self.intervention.describe())
        self.say("help says what can be typed; exit or Ctrl+D ends" if self.keys else "")

    def say(self, words: str) -> None:
        """Words that are no answer; none, if empty."""
        if words:
            print(printable(words), file=sys.stderr, flush=True)

    def take(self, line: str) -> bool:
        """Obey a command, or answer a message. False: the conversation is over."""
        if not is_command(line):
            self.answer(line.strip())
            return True
        said = obey(line, self.settings)
        if line.strip() == "new":
            self.messages.clear()
        self.say(said or "")
        return said is not None

    def answer(self, text: str) -> None:
        """Answer a message, and tell how it went."""
        from moe_core.inference.chat_format import Message

        question = Message("user", text)
        generation = self.ask(question)
        written, began = Written(self.engine.model), time.perf_counter()
        with nullcontext() if self.keys is None else self.keys.stopping(generation.cancel):
            self.read(generation, written)
        seconds = time.perf_counter() - began
        answer = written.text.strip()
        self.messages += [question, Message("assistant", answer)]
        if self.keys is None and not self.output.json_only:
            print(as_one_line(answer), flush=True)
        number = len(written.tokens)
        ended = {"length": "; max_new_tokens ended it", "cancelled": "; stopped"}.get(written.reason, "")
        self.say(f"({count_of(number, 'token')} in {seconds:.1f} s, {number / seconds:.0f} tokens/s{ended})")
        if self.verbose:
            self.say(_experts_table(written, self.engine.model.moe_layers))
        told = {"message": text, "answer": answer, "reason": written.reason, "base_model": self.is_base}
        experts = {"tokens": written.tokens} if self.verbose else {}
        self.output.line({**told, "token_count": number, "tokens_per_second": number / seconds, **experts})

    def ask(self, question: Message) -> Generation:
        """The answer to it and all that was said before."""
        from moe_core.inference.chat_format import Message, chat_prompt_in_window
        from moe_core.inference.engine import Request

        model, sampling = self.engine.model, self.settings.sampling
        system = [Message("system", self.settings.system)] if self.settings.system else []
        prompt = chat_prompt_in_window(model, [*system, *self.messages, question], sampling.max_new_tokens)
        if prompt.left_out:
            left = f"{count_of(prompt.left_out, 'message')} at the beginning"
            self.say(f"({left} no longer fit into the {model.context_window:,} tokens that it sees)")
        return self.engine.start(Request(prompt.token_ids, sampling, prompt.stop, self.intervention, thread="chat"))

    def read(self, generation: Generation, written: Written) -> None:
        """Read an answer to its end; a terminal shows it as it comes."""
        for event in generation:
            begun = bool(written.text.strip())
            text = written.add(event)
            if self.keys:  # the answer to a plain transcript begins with a space
                print(printable(text if begun else text.lstrip()), end="", flush=True)
        if self.keys:
            print(flush=True)


def _experts_table(written: Written, layers: Sequence[int]) -> str:
    """Token by token, the experts of each layer."""
    if not layers:
        return "a dense model: it has no experts"
    rows = [
        (token["text"].replace("\n", "\\n"), *(" ".join(str(e) for e in layer if e >= 0) for layer in token["experts"]))
        for token in written.tokens
    ]
    header = ("token", *(f"layer {layer}" for layer in layers[:MOST_LAYERS]))
    shown = table(header, [row[: len(header)] for row in rows])
    if len(layers) <= MOST_LAYERS:
        return shown
    return f"{shown}\n(the first {MOST_LAYERS} of {len(layers)} layers; --json with --verbose tells all)"


def _piped_lines() -> Iterator[str]:
    for line in sys.stdin:
        yield line.rstrip("\r\n")


class _CtrlC:
    """What Ctrl+C does in a terminal: at the prompt it ends the program if pressed twice, else it stops the answer."""

    PATIENCE = 3
    """So often it is pressed where an answer does not stop, until the program ends."""

    def __init__(self) -> None:
        self.stop: Callable[[], None] | None = None
        """Stops the answer that is being written."""
        self._at_prompt = False
        self._pressed = 0

    def lines(self) -> Iterator[str]:
        """What somebody types, until Ctrl+D or Ctrl+C twice."""
        with suppress(ImportError):  # Windows has none
            import readline  # noqa: F401 - arrow keys and history, which is kept in memory alone

        before = signal.signal(signal.SIGINT, self._press)
        try:
            interrupted = False
            while True:
                try:
                    self._at_prompt = True
                    if interrupted and self._pressed > 1:  # again, before the prompt was back
                        return
                    line = input("> ")
                    self._at_prompt, self._pressed = False, 0
                except KeyboardInterrupt:
                    print(file=sys.stderr)
                    if interrupted:
                        return
                    interrupted = True
                    print("Ctrl+C again ends, as exit and Ctrl+D do", file=sys.stderr, flush=True)
                    continue
                interrupted = False
                yield line
        except EOFError:
            print(file=sys.stderr)
        finally:
            signal.signal(signal.SIGINT, before)

    @contextmanager
    def stopping(self, stop: Callable[[], None]) -> Iterator[None]:
        """An answer is written meanwhile that `stop` stops."""
        self.stop = stop
        if self._pressed:  # before it began
            stop()
        try:
            yield
        finally:
            self.stop = None

    def _press(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature signal calls
        self._pressed += 1
        if self._at_prompt or self._pressed >= self.PATIENCE:
            self._at_prompt = False  # what is said of it is not interrupted by another one
            raise KeyboardInterrupt
        if self.stop is not None:
            self.stop()
