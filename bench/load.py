"""What the API takes: `python -m bench.load` asks the demo run from 1, 4, 16 and 50 clients and writes docs/results.md.

A client asks, reads the whole streamed answer, and asks again. One that is refused waits as long as Retry-After says
and asks the same again. Answers are greedy, so that equal questions have equal answers, whoever asks beside: an answer
that is lost, cut off or another's is counted. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np

from bench.batching import PROMPTS
from bench.http_clients import ROOT, Answered, ask, ask_together, served_demo
from bench.tables import insert
from moe_core.experiments.machine import environment
from moe_core.experiments.speed_result import Environment
from moe_core.reports.markdown import table

CLIENTS = (1, 4, 16, 50)
TOKENS, SLOTS, QUEUE = 48, 8, 32
BEGIN = "<!-- load: written by `python -m bench.load` -->"
END = "<!-- end of load -->"
HEADER = [
    "clients", "requests/s", "tokens/s", "first token, p50", "first token, p95", "429s", "wrong or lost answers",
]  # fmt: skip


@dataclass(frozen=True)
class Load:
    """What so many clients met."""

    clients: int
    seconds: float
    """From the first question until all answers are there that were begun."""
    answers: tuple[Answered, ...]
    """Those that were given, and those that were refused."""
    wrong: int
    """Answers with another text than the question has alone, or with a status other than 200 and 429."""

    @property
    def given(self) -> list[Answered]:
        """Those that were answered."""
        return [answer for answer in self.answers if answer.status == 200]

    @property
    def refused(self) -> int:
        """How often the queue was full."""
        return sum(answer.status == 429 for answer in self.answers)

    def row(self) -> list[str]:
        """Under HEADER."""
        first = [answer.first_seconds for answer in self.given]
        waits = [f"{np.quantile(first, q) * 1000:,.0f} ms" if first else "no answer" for q in (0.5, 0.95)]
        tokens = sum(answer.tokens for answer in self.given)
        speeds = [f"{len(first) / self.seconds:.1f}", f"{tokens / self.seconds:,.0f}"]
        return [str(self.clients), *speeds, *waits, str(self.refused), str(self.wrong)]


def questions(tokens: int) -> list[dict[str, Any]]:
    """What clients ask, one after the other."""
    counted = {"include_usage": True}
    common = {"model": "demo", "max_tokens": tokens, "temperature": 0, "stream": True, "stream_options": counted}
    return [{**common, "prompt": prompt} for prompt in PROMPTS]


def load(place: tuple[str, int], asked: Sequence[Mapping[str, Any]], clients: int, seconds: float) -> Load:
    """Ask from so many clients at once, for so long."""
    alone = [ask_together(place, [question])[0].text for question in asked]
    answers: list[Answered] = []
    wrong = 0
    began = time.perf_counter()

    async def client(number: int) -> None:
        nonlocal wrong
        turn = number
        while time.perf_counter() - began < seconds:
            place_of_question = turn % len(asked)
            answer = await ask(place, asked[place_of_question])
            answers.append(answer)
            if answer.status == 429:
                await asyncio.sleep(answer.retry_after)
                continue
            wrong += answer.status != 200 or answer.text != alone[place_of_question]
            turn += 1

    async def all_clients() -> None:
        await asyncio.gather(*(client(number) for number in range(clients)))

    asyncio.run(all_clients())
    return Load(clients, time.perf_counter() - began, tuple(answers), wrong)


def measure(seconds: float, threads: int, clients: Sequence[int] = CLIENTS) -> list[Load]:
    """A load for each number of clients, told on stderr as it comes. `threads`: in which the model computes."""
    found = []
    with served_demo(threads, slots=SLOTS, queue=QUEUE) as served:
        for number in clients:
            print(f"{number} clients, {seconds:.0f} s", file=sys.stderr, flush=True)
            found.append(load(served.place, questions(TOKENS), number, seconds))
    return found


def report(loads: Sequence[Load], where: Environment) -> str:
    """The table for docs/results.md, with the machine that it was measured on."""
    return (
        f"{date.today().isoformat()}, {where.processor}, {where.processors_usable} processors that server and clients "
        f"share, of which the model computes on {where.threads}, torch {where.versions['torch']}; load average before "
        f"{where.load_average_before:.1f}. Demo run, {SLOTS} slots, a queue of {QUEUE}, streamed answers of up to "
        f"{TOKENS} tokens, {round(loads[0].seconds)} s for each line.\n\n"
        f"{table(HEADER, [found.row() for found in loads])}\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the table into docs/results.md."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description="Load the API and write what it takes.")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each number of clients (default 20)")
    parser.add_argument("--print-only", action="store_true", help="leave docs/results.md as it is")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="in which the model computes; the clients need a processor, too (default 1)",
    )
    options = parser.parse_args(arguments)
    where = environment(options.threads)
    text = report(measure(options.seconds, options.threads), where)
    sys.stdout.write(text)
    if not options.print_only:
        insert(ROOT / "docs" / "results.md", text, BEGIN, END)


if __name__ == "__main__":
    main()
