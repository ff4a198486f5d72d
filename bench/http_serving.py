"""What HTTP costs over the engine: eight clients of `moescope serve`, beside the Scheduler alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench.batching import PROMPTS
from bench.http_clients import ask_together, served_demo
from bench.results import Goal, Result, compared
from bench.suite import Scale
from moe_core.experiments.machine import environment
from moe_core.experiments.timing import interleave
from moe_core.inference.engine import Engine, Request
from moe_core.inference.open import open_run
from moe_core.inference.sampling import SamplingConfig
from moe_core.inference.scheduler import Scheduler
from moe_core.words import count_of

ENGINE, STREAMED, WHOLE = "the engine", "HTTP, streamed", "HTTP, in one piece"


def run(scale: Scale) -> list[Result]:
    """A row for streamed answers and one for answers in one piece. The model computes on one thread, so that what the
    server does besides may use another processor where there is one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _rows(scale)
    finally:
        torch.set_num_threads(threads)


def _rows(scale: Scale) -> list[Result]:
    tokens = 4 if scale.smoke else 96
    requests = [
        Request(prompt, SamplingConfig(max_new_tokens=tokens, seed=seed)) for seed, prompt in enumerate(PROMPTS)
    ]
    questions = [question_of(request) for request in requests]
    with (
        served_demo(1, slots=len(PROMPTS)) as served,
        Scheduler(Engine(open_run("demo")), slots=len(PROMPTS), queue=0) as scheduler,
    ):

        def over_http(stream: bool) -> list[str]:
            answers = ask_together(served.place, [{**question, "stream": stream} for question in questions])
            return [answer.text for answer in answers]

        sides: dict[str, Callable[[], list[str]]] = {
            ENGINE: partial(read_by_one, scheduler, requests),
            STREAMED: partial(over_http, True),
            WHOLE: partial(over_http, False),
        }
        texts = [side() for side in sides.values()]
        assert texts[0] == texts[1] == texts[2], "HTTP gives another text than the engine"
        timings = interleave(
            sides, rounds=scale.rounds, on_round=lambda done: scale.progress("serving", done, scale.rounds)
        )
    case = f"{len(PROMPTS)} clients, {tokens} tokens each, demo run"
    goal = None if scale.smoke else Goal(0.9)
    processors = count_of(environment(1).processors_usable or 1, "processor")
    note = f"the model on 1 thread; {processors} for it, the server and the clients"
    return [compared(f"{side}: {case}", timings, side, ENGINE, goal=goal, note=note) for side in (STREAMED, WHOLE)]


def question_of(request: Request) -> dict[str, Any]:
    """The same over the API."""
    sampling = request.sampling
    return {
        "model": "demo",
        "prompt": request.prompt,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
    }


def read_by_one(scheduler: Scheduler, requests: list[Request]) -> list[str]:
    """The texts of all, which are written together. One thread reads them: one for each would only slow the engine."""
    generations = [scheduler.start(request) for request in requests]
    return [generation.result().text for generation in generations]
