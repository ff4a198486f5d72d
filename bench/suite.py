"""The benchmarks by name, and how they are run: `python main.py bench`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib import import_module

from bench.results import Record, Result
from moe_core.errors import UsageError
from moe_core.experiments.machine import environment
from moe_core.progress import Progress, silent

ROUNDS = 9


@dataclass(frozen=True)
class Scale:
    """How thoroughly a benchmark measures. A module of this package that has run(scale) -> list[Result] is one."""

    smoke: bool = False
    """True: sizes and rounds so small that it only shows whether everything still runs and agrees."""
    rounds: int = ROUNDS
    progress: Progress = silent


@dataclass(frozen=True)
class Benchmark:
    """The module of a benchmark and the question it answers."""

    module: str
    answers: str
    """One line."""
    in_default: bool = True
    """False: it takes so long that it is run only when named."""
    needs_cuda: bool = False
    """True: without a CUDA device there is nothing to measure, but a smoke run shows that it works."""

    def missing(self, *, smoke: bool) -> str:
        """Why it cannot be run here, in a sentence; empty if it can."""
        import torch

        if smoke or not self.needs_cuda or torch.cuda.is_available():
            return ""
        return (
            "not measured: it needs a CUDA device, which this machine lacks; where there is one, run "
            f"`python main.py bench --only {self.module}` (here --smoke shows that it works)"
        )


BENCHMARKS: dict[str, Benchmark] = {
    "moe_layer": Benchmark("moe_layer", "How fast is one MoE layer, from one token to thousands?"),
    "whole_model": Benchmark("whole_model", "How fast are whole models, against others of the same weights or size?"),
    "precision": Benchmark("precision", "Does bfloat16 pay on this processor?", in_default=False),
    "observing": Benchmark("observing", "What do capture and streaming cost?"),
    "foreign_models": Benchmark(
        "foreign_models", "What do tracing, writing and capture cost beside someone else's model?"
    ),
    "batching": Benchmark("batching", "What do requests gain by being answered together?"),
    "http_serving": Benchmark("http_serving", "What does HTTP cost over the engine?"),
    "training_loop": Benchmark("training_loop", "What part of a training is its bare steps?"),
    "watched_steps": Benchmark("watched_steps", "What does watching cost someone else's training?"),
    "aggregation": Benchmark("aggregation", "How fast is a trace counted, against pandas and pyarrow?"),
    "traces": Benchmark("traces", "How long does a million tokens take, from text to every table, and how much room?"),
    "growth": Benchmark("growth", "How does cost grow, and what does a trace of ten million tokens take?"),
    "large_trace": Benchmark(
        "large_trace", "Are a hundred million tokens counted and tested in bounded memory?", in_default=False
    ),
    "training_start": Benchmark(
        "training_start", "How long does a training take to its first step, by the size of its text?", in_default=False
    ),
    "served_clients": Benchmark("served_clients", "How does the API's cost grow with its clients?"),
    "dashboard": Benchmark("dashboard", "How long does the dashboard let one wait, and what does it send?"),
    "startup": Benchmark("startup", "How soon does the command line answer?"),
    "gpu": Benchmark("gpu", "How much of a GPU's speed is used, training, reading and writing?", needs_cuda=True),
    "speedrun": Benchmark("speedrun", "What loss do three minutes on two cores buy?", in_default=False),
}


def select(only: Sequence[str], *, smoke: bool) -> list[str]:
    """The benchmarks to run: those named, else every one that belongs to a plain run (with smoke: all).

    Raises UsageError naming one that does not exist.
    """
    for name in only:
        if name not in BENCHMARKS:
            raise UsageError(f"unknown benchmark {name!r}; expected one of {', '.join(BENCHMARKS)}")
    return [name for name, found in BENCHMARKS.items() if (name in only if only else smoke or found.in_default)]


def run_benchmark(name: str, scale: Scale, threads: int) -> Record:
    """Run one with `threads` torch threads on as many processors, and say on what.

    Freed memory is kept, as when training: a dense model's large intermediate results would otherwise be asked for anew
    in every call, which is the allocator's doing and not the model's (docs/LOG.md). Not so with smoke, which tests run.
    """
    run: Callable[[Scale], list[Result]] = import_module(f"bench.{BENCHMARKS[name].module}").run
    if not scale.smoke:
        from moe_core.training.repeatability import keep_freed_memory

        keep_freed_memory()
    with _pinned_threads(threads):
        where = asdict(environment(threads))
        date, start = datetime.now().isoformat(timespec="minutes"), time.perf_counter()
        results = run(scale)
        return Record(name, date, round(time.perf_counter() - start, 1), where, tuple(results))


@contextmanager
def _pinned_threads(threads: int) -> Iterator[None]:
    """Torch computes in `threads` threads, which the system keeps on that many processors (where it can)."""
    import torch

    threads_before = torch.get_num_threads()
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    torch.set_num_threads(threads)
    try:
        if allowed:
            os.sched_setaffinity(0, sorted(allowed)[:threads])
        yield
    finally:
        if allowed:
            os.sched_setaffinity(0, allowed)
        torch.set_num_threads(threads_before)
