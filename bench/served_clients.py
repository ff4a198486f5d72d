"""How the API's cost grows with its clients: each asks a few answers, one after the other, all clients at once.

The whole work is in proportion to the clients. Cost is the server's processor time, which does not depend on what else
the machine does; what a client waits is told beside it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.growth import NEARLY_LINEAR, exponent
from bench.http_clients import Answered, Served, ask, ask_together, served_demo
from bench.load import SLOTS, TOKENS, questions
from bench.results import Goal, Result
from bench.suite import Scale

CLIENTS, SMOKE_CLIENTS = (1, 4, 16, 64), (1, 2)
ANSWERS = 4
"""Answers that each client asks for."""


def run(scale: Scale) -> list[Result]:
    """Rows for each number of clients, and how processor time grows with them. The model computes on one thread."""
    clients, tokens = (SMOKE_CLIENTS, 2) if scale.smoke else (CLIENTS, TOKENS)
    rows, costs = [], list[float]()
    with served_demo(1, slots=SLOTS, queue=max(clients)) as served:
        asked = questions(tokens)
        ask_together(served.place, asked)  # warms up
        for number, count in enumerate(clients):
            scale.progress("serving", number, len(clients))
            before, began = served.processor_seconds(), time.perf_counter()
            answers = asyncio.run(_all_clients(served, asked, count))
            seconds, cost = time.perf_counter() - began, served.processor_seconds() - before
            refused = sum(answer.status != 200 for answer in answers)
            assert not refused, f"{refused} of {len(answers)} answers were refused"
            written = sum(answer.tokens for answer in answers)
            costs.append(cost)
            first = np.quantile([answer.first_seconds for answer in answers], [0.5, 0.95]) * 1000
            said = f"first token after {first[0]:,.0f} ms, 95 % within {first[1]:,.0f} ms; {SLOTS} written together"
            rows.append(Result(f"{count} clients, {tokens} tokens an answer", written / seconds, "tokens/s", note=said))
            rows.append(Result(f"{count} clients: the server's processor time", 1000 * cost / written, "ms/token"))
    said = ", ".join(f"{count}: {cost:.2f} s" for count, cost in zip(clients, costs, strict=True))
    goal = None if scale.smoke else Goal(NEARLY_LINEAR, at_most=True)
    grown = float("nan") if scale.smoke else exponent(clients, costs)
    return [*rows, Result("processor time against clients, exponent", grown, "", goal=goal, note=said)]


async def _all_clients(served: Served, asked: Sequence[Mapping[str, Any]], clients: int) -> list[Answered]:
    async def client(number: int) -> list[Answered]:
        return [await ask(served.place, asked[(number + turn) % len(asked)]) for turn in range(ANSWERS)]

    found = await asyncio.gather(*(client(number) for number in range(clients)))
    return [answer for answers in found for answer in answers]
