"""How cost grows with tokens, experts, layers and documents; and a trace of ten million tokens, analysed and looked at.

Cost is the processor time of all measures (`MEASURES`) of a trace on disk, read part by part as the dashboard and
`main.py plots` do with large ones: of the counts, which look at every token, and of the nulls. The exponent b of
cost ~ size^b is fitted by least squares on the logarithms of the larger half of the sizes, where what every analysis
costs at least no longer hides the growth; 1 = linear.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from bench.dashboard import browsing, rows_of, serving, visit_all, what_is_missing
from bench.made_traces import Size, trace_parts, write_trace
from bench.processes import ROOT, Took, run_python
from bench.results import Goal, Result
from bench.suite import Scale
from moe_core.figures.figure import figure_bytes
from moe_core.figures.growth import growth_figure
from moe_core.files import replaced
from moe_core.routing.measures import registry
from moe_core.routing.trace.groups import Group
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.routing.trace.trace import RoutingTrace
from moe_core.routing.workers.adding import Adder, LeftOut
from moe_core.routing.workers.one_file import Job

LARGE_TOKENS, LARGE_MEMORY_MIB = 10_000_000, 4096.0
PAGES = ("overview", "tokens", "domains", "experts", "flow")
NEARLY_LINEAR = 1.15
"""An exponent up to which cost counts as linear: caches alone account for some of it."""
_OF_MADE = [measure for measure in registry.MEASURES if not measure.labels and not measure.varying]
"""The traces that are timed have no labels, and as many experts for each token."""
MEASURES: dict[str, tuple[Callable[..., object], ...]] = {
    "counts": tuple(
        dict.fromkeys(  # pairs and strength of co-activation are the same counts
            measure.function
            for measure in _OF_MADE
            if measure.function is not None and measure.of == "trace" and measure.null is not measure.function
        )
    ),
    "nulls": tuple(measure.null for measure in _OF_MADE if measure.null is not None),
}
"""In the order they are timed: what the nulls have in common with the counts is not counted again."""
PICTURE = ROOT / "docs" / "benchmarks" / "growth.svg"
AXES: dict[str, Sequence[int]] = {
    "tokens": (250_000, 500_000, 1_000_000, 2_000_000),
    "experts": (8, 64, 128),
    "layers": (2, 4, 8, 16),
    "documents": (250, 4_000, 64_000),
}
PARTS = (256, 1_024, 4_096)
MEMORY_TOKENS = (500_000, 1_000_000, 2_000_000)


def run(scale: Scale) -> list[Result]:
    """Rows for each axis and for memory; and, where it is no smoke, for a trace of LARGE_TOKENS."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if scale.smoke:
            axes = {"tokens": (4_000, 8_000)}
            return growth_rows(measure(place, axes, Size(tokens=4_000, documents=20), scale))
        points = measure(place, AXES, Size(), scale)
        PICTURE.parent.mkdir(parents=True, exist_ok=True)
        with replaced(PICTURE) as file:
            file.write(figure_bytes(growth_figure(points, exponents(points)), "svg"))
        rows = [*growth_rows(points), *layer_rows(points, Size()), *adding_rows(PARTS, scale)]
        return [*rows, *_memory_rows(place, scale), *_large_rows(place, scale)]


def measure(place: Path, axes: Mapping[str, Sequence[int]], base: Size, scale: Scale) -> pd.DataFrame:
    """Processor seconds at each size. Columns: axis, kind ("counts", "nulls"), size, seconds."""
    rows: list[dict[str, Any]] = []
    for axis, sizes in axes.items():
        for number, size in enumerate(sizes):
            scale.progress(f"growing {axis}", number, len(sizes))
            path = place / "growing.parquet"
            write_trace(path, Size(**{**asdict(base), axis: size}))
            trace = RoutingTrace.open(path)
            for kind, functions in MEASURES.items():
                start = time.process_time()
                for function in functions:
                    function(trace)
                rows.append({"axis": axis, "kind": kind, "size": size, "seconds": time.process_time() - start})
    return pd.DataFrame(rows)


def exponents(points: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Exponents by axis and kind, see exponent."""
    return {
        (str(axis), str(kind)): exponent(own["size"].tolist(), own["seconds"].tolist())
        for (axis, kind), own in points.groupby(["axis", "kind"], sort=False)
    }


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """b of cost ~ size^b over the larger half of the sizes, two at least."""
    kept = max(2, (len(sizes) + 1) // 2)
    order = np.argsort(sizes)[-kept:]
    slope, _ = np.polyfit(np.log(np.asarray(sizes)[order]), np.log(np.asarray(costs)[order]), 1)
    return float(slope)


def growth_rows(points: pd.DataFrame) -> list[Result]:
    """The exponent of each axis and kind, with the points it was fitted to."""
    goal, rows = Goal(NEARLY_LINEAR, at_most=True), []
    for (axis, kind), found in exponents(points).items():
        own = points[(points["axis"] == axis) & (points["kind"] == kind)]
        said = ", ".join(f"{size:,}: {cost:.2f} s" for size, cost in zip(own["size"], own["seconds"], strict=True))
        rows.append(Result(f"{kind} against {axis}, exponent", found, "", goal=goal, note=said))
    return rows


def layer_rows(points: pd.DataFrame, base: Size) -> list[Result]:
    """What all nulls of one layer take, by its number of experts."""
    own = points[(points["axis"] == "experts") & (points["kind"] == "nulls")]
    of = f"{base.tokens:,} tokens x top-{base.top_k}"
    return [
        Result(f"nulls of one layer, {size} experts, {of}: processor time", seconds / base.layers, "s")
        for size, seconds in zip(own["size"], own["seconds"], strict=True)
    ]


def adding_rows(parts: Sequence[int], scale: Scale) -> list[Result]:
    """How adding up counts grows with the number of their parts, as workers or ranks hand them in.

    Each part has its own sources (the sum then grows with the parts), or domains alone, which are the same in all.
    """
    trace = next(trace_parts(Size(tokens=20_000, documents=40), np.random.default_rng(0)))
    rows, ways = [], list[Literal["source", "domain"]](("source", "domain"))
    for by in ways:
        counts, seconds = trace.counts(by), list[float]()
        for number, size in enumerate(parts):
            scale.progress(f"adding up by {by}", number, len(parts))
            given = [_named_apart(counts, part) if by == "source" else counts for part in range(size)]
            jobs = [Job(Path(f"{part}"), f"{part}", False, by, (), False, "") for part in range(size)]
            start = time.process_time()
            adder = Adder(jobs)
            for part, one in enumerate(given):
                adder.take(part, one)
            assert adder.total(LeftOut(False)).num_tokens == size * trace.num_tokens
            seconds.append(time.process_time() - start)
        said = ", ".join(f"{size}: {cost:.3f} s" for size, cost in zip(parts, seconds, strict=True))
        goal, what = Goal(NEARLY_LINEAR, at_most=True), f"adding up counts by {by} against parts, exponent"
        rows.append(Result(what, exponent(parts, seconds), "", goal=goal, note=said))
    return rows


def _named_apart(counts: RoutingCounts, part: int) -> RoutingCounts:
    return replace(counts, groups=[Group(one.domain, f"{part}:{one.source}") for one in counts.groups])


def _plots(path: Path, place: Path, file_format: str) -> Took:
    """Everything that a user runs on a trace: every measure, every null, every figure."""
    out = str(place / "out")
    return run_python(["main.py", "plots", "--trace", str(path), "--out", out, "--format", file_format])


def _memory_rows(place: Path, scale: Scale) -> list[Result]:
    path, peaks = place / "memory.parquet", []
    for number, tokens in enumerate(MEMORY_TOKENS):
        scale.progress("weighing", number, len(MEMORY_TOKENS))
        write_trace(path, Size(tokens=tokens, documents=tokens // 500))
        peaks.append(_plots(path, place, "csv").peak_mib)
    said = ", ".join(f"{tokens:,}: {peak:,.0f} MiB" for tokens, peak in zip(MEMORY_TOKENS, peaks, strict=True))
    goal = Goal(NEARLY_LINEAR, at_most=True)
    return [Result("peak memory against tokens, exponent", exponent(MEMORY_TOKENS, peaks), "", goal=goal, note=said)]


def _large_rows(place: Path, scale: Scale) -> list[Result]:
    path = place / "large.parquet"
    scale.progress("writing a large trace", 0, 3)
    write_trace(path, Size(tokens=LARGE_TOKENS, documents=LARGE_TOKENS // 500))
    scale.progress("analysing a large trace", 1, 3)
    took = _plots(path, place, "png")
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
