"""What a grammar brings and costs: texts written with it and freely from the same prompt, in turns."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from moe_core.data.python_syntax import parses
from moe_core.inference.engine import Engine, Request
from moe_core.inference.grammar import PYTHON
from moe_core.progress import Progress, silent


@dataclass(frozen=True)
class Trial:
    """Some texts of one way of writing."""

    way: str
    texts: int = 0
    complete: int = 0
    """Those that the model ended."""
    parsed: int | None = None
    """Complete ones that ast.parse takes, prompt included; None for a grammar of another language."""
    tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """0 where nothing was written."""
        return self.tokens / self.seconds if self.seconds else 0.0


def trial(engine: Engine, request: Request, texts: int, progress: Progress = silent) -> tuple[Trial, Trial]:
    """(with the grammar of the request, without it): `texts` each, with the seeds from the request's on.

    They take turns, so that what else the machine does slows both.
    """
    assert request.grammar is not None
    checks = request.grammar.name == PYTHON
    held, free = Trial(request.grammar.name, parsed=0 if checks else None), Trial("free", parsed=0 if checks else None)
    engine.start(request).result()  # what is made at the first call alone is not timed
    for number in range(texts):
        progress("writing", number, texts)
        sampling = replace(request.sampling, seed=request.sampling.seed + number)
        held = _one_more(held, engine, replace(request, sampling=sampling))
        free = _one_more(free, engine, replace(request, sampling=sampling, grammar=None))
    return held, free


def _one_more(so_far: Trial, engine: Engine, request: Request) -> Trial:
    began = time.perf_counter()
    found = engine.start(request).result()
    seconds = time.perf_counter() - began
    complete, parsed = found.reason == "end of text", so_far.parsed
    if parsed is not None and isinstance(request.prompt, str):
        parsed += complete and parses(request.prompt + found.text)
    return replace(
        so_far,
        texts=so_far.texts + 1,
        complete=so_far.complete + complete,
        parsed=parsed,
        tokens=so_far.tokens + len(found.tokens),
        seconds=so_far.seconds + seconds,
    )
