"""A trace of a hundred million tokens on disk, row group by row group: is it counted and tested in bounded memory?

Each command is run at two sizes, ten times apart. Its cost is processor time, which does not depend on what else the
machine does. Takes 5 GB of disk and a quarter of an hour.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench.growth import LARGE_MEMORY_MIB, NEARLY_LINEAR, exponent
from bench.made_traces import Size, write_trace
from bench.processes import Took, run_python
from bench.results import Goal, Result
from bench.suite import Scale

SIZES, SMOKE_SIZES = (10_000_000, 100_000_000), (4_000, 8_000)
DOCUMENT_TOKENS = 500
COMMANDS = {
    "counts by source": ["counts", "{trace}", "--workers", "1", "--out", "{out}.counts.parquet"],
    "counts by domain": ["counts", "{trace}", "--workers", "1", "--by", "domain", "--out", "{out}.counts.parquet"],
    "every measure and null": ["plots", "--trace", "{trace}", "--format", "csv", "--out", "{out}"],
}


def run(scale: Scale) -> list[Result]:
    """For each command the time and memory at both sizes, and how the time grows."""
    sizes = SMOKE_SIZES if scale.smoke else SIZES
    commands = dict(list(COMMANDS.items())[-1:] if scale.smoke else COMMANDS)
    took: dict[str, list[Took]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "large.parquet", f"{folder}/out"
        for number, tokens in enumerate(sizes):
            scale.progress("writing a large trace", number, len(sizes))
            write_trace(path, Size(tokens=tokens, documents=tokens // DOCUMENT_TOKENS))
            for name, words in commands.items():
                scale.progress(f"{name} of a large trace", number, len(sizes))
                took[name].append(run_python(["main.py", *(word.format(trace=path, out=out) for word in words)]))
    rows = []
    for name, found in took.items():
        for tokens, one in zip(sizes, found, strict=True):
            said = f"{one.processor_seconds:,.1f} s of processor time"
            rows.append(Result(f"{name}, {tokens:,} tokens", one.seconds, "s", note=said))
            goal = Goal(LARGE_MEMORY_MIB, at_most=True)
            rows.append(Result(f"{name}, {tokens:,} tokens: peak memory", one.peak_mib, "MiB", goal=goal))
        grown = exponent(sizes, [one.processor_seconds for one in found])
        rows.append(Result(f"{name} against tokens, exponent", grown, "", goal=Goal(NEARLY_LINEAR, at_most=True)))
    return rows
