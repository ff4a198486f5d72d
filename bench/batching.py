"""What requests gain by being answered together, on the shipped demo run."""

from __future__ import annotations

import time
from functools import partial

from bench.results import Goal, Result, compared
from bench.suite import Scale
from moe_core.experiments.timing import Spread, interleave
from moe_core.inference.engine import Engine, Request
from moe_core.inference.open import open_run
from moe_core.inference.sampling import SamplingConfig
from moe_core.inference.scheduler import Scheduler

TOGETHER, TURNS = "together", "the same requests one after the other"
PROMPTS = (
    "The tenant shall pay the rent",
    "def main():\n    ",
    "Der Rest",
    "In 1905",
    "The court held that",
    "Once upon a time there was",
    "for i in range(10):",
    "Dear Sir",
)


def run(scale: Scale) -> list[Result]:
    """A row for 2, 4 and 8 requests."""
    tokens = 4 if scale.smoke else 96
    rows: list[Result] = []
    for number in (2,) if scale.smoke else (2, 4, 8):
        rows += rows_for(Engine(open_run("demo")), number, tokens, scale)
        scale.progress("batching", len(rows), 6)
    return rows


def rows_for(engine: Engine, number: int, tokens: int, scale: Scale) -> list[Result]:
    """Times by the clock, and the processor's, which other programs do not lengthen."""
    requests = [
        Request(prompt, SamplingConfig(max_new_tokens=tokens, seed=seed))
        for seed, prompt in enumerate(PROMPTS[:number])
    ]
    with Scheduler(engine, slots=number, queue=0) as scheduler:
        together, turns = partial(answer_together, scheduler, requests), partial(answer_in_turns, engine, requests)
        found = together()
        assert found == turns(), "requests wrote other tokens together than alone"
        written = sum(map(len, found))
        timings = interleave({TOGETHER: together, TURNS: turns}, rounds=scale.rounds)
        seconds = [(processor_seconds(together), processor_seconds(turns)) for _ in range(scale.rounds)]
    case = f"{number} requests at once, {written} tokens, demo run"
    goal = Goal(2.0) if number == 8 and not scale.smoke else None
    ratios = sorted(alone / joined for joined, alone in seconds)
    tenth = len(ratios) // 10
    return [
        compared(case, timings, TOGETHER, TURNS, goal=goal, note="the ratio is that of tokens a second"),
        Result(
            f"{case}: processor time",
            1000 * sorted(joined for joined, _ in seconds)[len(seconds) // 2],
            "ms",
            TURNS,
            1000 * sorted(alone for _, alone in seconds)[len(seconds) // 2],
            Spread(ratios[len(ratios) // 2], ratios[tenth], ratios[-1 - tenth]),
        ),
    ]


def answer_together(scheduler: Scheduler, requests: list[Request]) -> list[list[int]]:
    """The token ids of every request, all let in at once."""
    generations = [scheduler.start(request, whole=True) for request in requests]
    return [[token.token_id for token in generation.tokens()] for generation in generations]


def answer_in_turns(engine: Engine, requests: list[Request]) -> list[list[int]]:
    """The same, each alone."""
    return [[token.token_id for token in engine.start(request).tokens()] for request in requests]


def processor_seconds(call: partial[list[list[int]]]) -> float:
    """Of all threads of this process."""
    start = time.process_time()
    call()
    return time.process_time() - start
