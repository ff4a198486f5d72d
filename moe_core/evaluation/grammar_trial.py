"""What a grammar brings and costs: texts written with it and freely from the same prompt, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from moe_core.evaluation.tasks.written import parses
from moe_core.inference.engine import Engine, Request
from moe_core.inference.grammar import PYTHON
from moe_core.progress import Progress, silent


@dataclass(frozen=True)
class Trial:
    """Some texts of one way of writing."""

    way: str
    texts: int
    complete: int
    """Those that the model ended."""
    parsed: int | None
    """Complete ones that ast.parse takes, prompt included; None for a grammar of another language."""
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """0 where nothing was written."""
        return self.tokens / self.seconds if self.seconds else 0.0


def trial(engine: Engine, request: Request, texts: int, progress: Progress = silent) -> tuple[Trial, Trial]:
    """(with the grammar of the request, without it): `texts` each, with the seeds from the request's on."""
    assert request.grammar is not None
    check = parses if request.grammar.name == PYTHON else None
    asked = ((request.grammar.name, request), ("free", replace(request, grammar=None)))
    held, free = (
        _written(engine, way, one, texts, check, lambda n, way=way: progress(f"writing, {way}", n, texts))  # type: ignore[misc]
        for way, one in asked
    )
    return held, free


def _written(
    engine: Engine,
    way: str,
    request: Request,
    texts: int,
    check: Callable[[str], bool] | None,
    tell: Callable[[int], None],
) -> Trial:
    complete = parsed = tokens = 0
    engine.start(request).result()  # what is made at the first call alone is not timed
    began = time.perf_counter()
    for number in range(texts):
        tell(number)
        sampling = replace(request.sampling, seed=request.sampling.seed + number)
        found = engine.start(replace(request, sampling=sampling)).result()
        tokens += len(found.tokens)
        if found.reason == "end of text":
            complete += 1
            parsed += check is not None and isinstance(request.prompt, str) and check(request.prompt + found.text)
    return Trial(way, texts, complete, None if check is None else parsed, tokens, time.perf_counter() - began)
