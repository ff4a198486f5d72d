"""How cost grows with tokens, experts, layers and documents; and a trace of ten million tokens, analysed and looked at.

Cost is the processor time of every measure (`MEASURES`) of a trace on disk, read part by part as the dashboard and
`main.py plots` do with large ones. The exponent b of cost ~ size^b is fitted by least squares on the logarithms of the
larger half of the sizes, where what every analysis costs at least no longer hides the growth; 1 = linear.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moe_core.benchmarks.dashboard import browsing, rows_of, serving, visit_all, what_is_missing
from moe_core.benchmarks.processes import Took, run_python
from moe_core.benchmarks.results import Goal, Result
from moe_core.benchmarks.suite import Scale
from moe_core.routing import baselines, metrics
from moe_core.routing.parquet import TraceWriter
from moe_core.routing.stored import AnyTrace
from moe_core.routing.trace import RoutingTrace

LARGE_TOKENS, LARGE_MEMORY_MIB = 10_000_000, 4096.0
PAGES = ("overview", "tokens", "domains", "experts", "flow")
NEARLY_LINEAR = 1.15
"""An exponent up to which cost counts as linear: caches alone account for some of it."""
MEASURES: tuple[Callable[[AnyTrace], object], ...] = (
    metrics.expert_load,
    metrics.load_balance,
    metrics.router_entropy,
    metrics.dropped_by_position,
    metrics.vocabulary_specialization,
    metrics.context_independence,
    metrics.coactivation,
    metrics.layer_flow,
    metrics.persistence,
    baselines.domain_nmi,
    baselines.domain_cells,
    baselines.vocabulary,
    baselines.coactivation,
    baselines.layer_flow,
    baselines.persistence,
)
_CHUNK = 2**17


@dataclass(frozen=True)
class Size:
    """What a synthetic trace is made of."""

    tokens: int = 200_000
    experts: int = 16
    layers: int = 4
    documents: int = 400
    vocabulary: int = 8_000


AXES: dict[str, Sequence[int]] = {
    "tokens": (125_000, 250_000, 500_000, 1_000_000, 2_000_000),
    "experts": (8, 16, 32, 64, 128),
    "layers": (2, 4, 8, 16, 32),
    "documents": (250, 1_000, 4_000, 16_000, 64_000),
}
MEMORY_TOKENS = (500_000, 1_000_000, 2_000_000)


def run(scale: Scale) -> list[Result]:
    """Rows for each axis and for memory; and, where it is no smoke, for a trace of LARGE_TOKENS."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if scale.smoke:
            base = Size(tokens=4_000, documents=20)
            points = measure(place, {"tokens": (4_000, 8_000)}, base, 1, scale)
            return growth_rows(points)
        points = measure(place, AXES, Size(), min(scale.rounds, 2), scale)
        return [*growth_rows(points), *_memory_rows(place, scale), *_large_rows(place, scale)]


def measure(place: Path, axes: dict[str, Sequence[int]], base: Size, rounds: int, scale: Scale) -> pd.DataFrame:
    """Processor seconds of all measures at each size, the least of `rounds`.

    Columns: axis, size, seconds, kib (of the file).
    """
    rows: list[dict[str, Any]] = []
    for axis, sizes in axes.items():
        for number, size in enumerate(sizes):
            scale.progress(f"growing {axis}", number, len(sizes))
            path = place / "growing.parquet"
            write_trace(path, Size(**{**asdict(base), axis: size}))
            trace = RoutingTrace.open(path)
            seconds = min(_analyse(trace) for _ in range(rounds))
            rows.append({"axis": axis, "size": size, "seconds": seconds, "kib": path.stat().st_size / 1024})
    return pd.DataFrame(rows)


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """b of cost ~ size^b over the larger half of the sizes, two at least."""
    kept = max(2, (len(sizes) + 1) // 2)
    order = np.argsort(sizes)[-kept:]
    slope, _ = np.polyfit(np.log(np.asarray(sizes)[order]), np.log(np.asarray(costs)[order]), 1)
    return float(slope)


def growth_rows(points: pd.DataFrame) -> list[Result]:
    """The exponent of each axis, with the points it was fitted to."""
    rows = []
    for axis, own in points.groupby("axis", sort=False):
        said = ", ".join(f"{size:,}: {cost:.2f} s" for size, cost in zip(own["size"], own["seconds"], strict=True))
        rows.append(
            Result(
                f"cost against {axis}, exponent",
                exponent(own["size"].tolist(), own["seconds"].tolist()),
                "",
                goal=Goal(NEARLY_LINEAR, at_most=True),
                note=said,
            )
        )
    return rows


def write_trace(path: Path, size: Size, seed: int = 0) -> None:
    """A trace on disk, never in memory as a whole: skewed load, experts that follow tokens and domains a little.

    Documents are of one length, four domains take turns, the tokens follow a power law.
    """
    with TraceWriter(path) as writer:
        for part in _parts(size, np.random.default_rng(seed)):
            writer.write(part)


def _parts(size: Size, rng: np.random.Generator) -> Iterator[RoutingTrace]:
    L, E, V = size.layers, size.experts, size.vocabulary
    home_LV = rng.integers(0, E, (L, V))
    texts = {i: f" word{i}" for i in range(V)}
    length = -(-size.tokens // size.documents)
    chunk = max(1, _CHUNK // length) * length  # a document is not cut
    for start in range(0, size.tokens, chunk):
        at = np.arange(start, min(start + chunk, size.tokens))
        document_T = at // length
        token_T = (rng.random(len(at)) ** 3 * V).astype(np.int32)
        domain_T = document_T % 4
        first_LT = np.minimum(rng.exponential(E / 3, (L, len(at))), E - 1).astype(np.int64)
        first_LT = np.where(rng.random(first_LT.shape) < 0.4, home_LV[:, token_T], first_LT)
        of_domain_LT = (domain_T * 3 + np.arange(L)[:, None]) % E
        first_LT = np.where(rng.random(first_LT.shape) < 0.1, of_domain_LT, first_LT)
        other_LT = (first_LT + rng.integers(1, E, first_LT.shape)) % E
        weight_LT = 0.5 + 0.5 * rng.random(first_LT.shape)
        yield RoutingTrace.from_arrays(
            router_indices=np.stack([first_LT, other_LT], axis=-1),
            router_scores=np.stack([weight_LT, 1 - weight_LT], axis=-1),
            num_experts=E,
            token_ids=token_T,
            document_ids=document_T,
            positions=at % length,
            domain_ids=domain_T,
            domains=["finance", "legal", "code", "general"],
            vocabulary=texts,
        )


def _analyse(trace: AnyTrace) -> float:
    start = time.process_time()
    for function in MEASURES:
        function(trace)
    return time.process_time() - start


def _plots(path: Path, place: Path) -> Took:
    """What a user runs on a trace: every measure, every null, every figure."""
    return run_python(["main.py", "plots", "--trace", str(path), "--out", str(place / "out")])


def _memory_rows(place: Path, scale: Scale) -> list[Result]:
    path, peaks = place / "memory.parquet", []
    for number, tokens in enumerate(MEMORY_TOKENS):
        scale.progress("weighing", number, len(MEMORY_TOKENS))
        write_trace(path, Size(tokens=tokens, documents=tokens // 500))
        peaks.append(_plots(path, place).peak_mib)
    said = ", ".join(f"{tokens:,}: {peak:,.0f} MiB" for tokens, peak in zip(MEMORY_TOKENS, peaks, strict=True))
    goal = Goal(NEARLY_LINEAR, at_most=True)
    return [Result("peak memory against tokens, exponent", exponent(MEMORY_TOKENS, peaks), "", goal=goal, note=said)]


def _large_rows(place: Path, scale: Scale) -> list[Result]:
    path = place / "large.parquet"
    scale.progress("writing a large trace", 0, 3)
    write_trace(path, Size(tokens=LARGE_TOKENS, documents=LARGE_TOKENS // 500))
    scale.progress("analysing a large trace", 1, 3)
    took = _plots(path, place)
    what = f"{LARGE_TOKENS:,} tokens"
    rows = [
        Result(f"{what}: `main.py plots --trace`, all figures", took.seconds, "s"),
        Result(f"{what}: its peak memory", took.peak_mib, "MiB", goal=Goal(LARGE_MEMORY_MIB, at_most=True)),
    ]
    missing = what_is_missing()
    if missing:
        return [*rows, Result(f"{what}: dashboard", float("nan"), "s", note=f"not measured: {missing}")]
    scale.progress("opening a large trace", 2, 3)
    with serving(place, "--trace", str(path)) as server, browsing() as browser:
        visits = visit_all(browser, server.url, PAGES, scale)
        peak = server.peak_mib()
    goal = Goal(LARGE_MEMORY_MIB, at_most=True)
    return [*rows, *rows_of(visits, what), Result(f"{what}: peak memory of the dashboard", peak, "MiB", goal=goal)]
