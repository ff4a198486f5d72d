"""How long a training takes to its first step, and how much memory, against the size of its text.

Each size is trained in a process of its own, as `main.py --quick --data` does it up to its first step: the text is read
and split, a tokenizer is trained, the text tokenised, the model made.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from bench.growth import NEARLY_LINEAR, exponent
from bench.processes import run_python
from bench.results import Goal, Result
from bench.suite import Scale
from data_gen import generate_corpus

MEGABYTES, SMOKE_MEGABYTES = (1, 10, 100), (1,)
WRITTEN_ONCE = 4_000
"""Documents of each domain that are generated; a larger text repeats them, numbered, so that no two are alike."""


def run(scale: Scale) -> list[Result]:
    """Two rows for each size, and the exponents of time and memory."""
    sizes = SMOKE_MEGABYTES if scale.smoke else MEGABYTES
    rows, processor, peaks = [], list[float](), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.jsonl"
        texts = _texts(60 if scale.smoke else WRITTEN_ONCE)
        for number, size in enumerate(sizes):
            scale.progress("starting a training", number, len(sizes))
            written = _write(path, texts, size * 10**6)
            took = json.loads(run_python(["-m", __name__, str(time.time()), str(path), folder]).output)
            processor.append(took["processor"])
            peaks.append(took["peak_mib"])
            said = ", ".join(f"{phase} {value:.1f}" for phase, value in took["seconds"].items())
            what = f"{written / 1e6:,.0f} MB of text ({took['tokens']:,} tokens) to the first step"
            rows.append(Result(what, sum(took["seconds"].values()), "s", note=said))
            rows.append(Result(f"{what}: most memory", peaks[-1], "MiB"))
    if len(sizes) > 1:
        goal = Goal(NEARLY_LINEAR, at_most=True)
        times = ", ".join(f"{size} MB: {value:.1f} s" for size, value in zip(sizes, processor, strict=True))
        weights = ", ".join(f"{size} MB: {value:,.0f} MiB" for size, value in zip(sizes, peaks, strict=True))
        for name, values, said in (
            ("processor time from text to tokens", processor, times),
            ("memory to the first step", peaks, weights),
        ):
            rows.append(Result(f"{name}, exponent", exponent(sizes, values), "", goal=goal, note=said))
    return rows


def _texts(documents: int) -> list[tuple[str, str]]:
    """(text, domain) of our own text, the domains in turn."""
    found = generate_corpus(documents, splits=["train"])
    return [(row.text, row.domain) for row in found]


def _write(path: Path, texts: list[tuple[str, str]], size: int) -> int:
    """Write documents until their text has `size` bytes; how many bytes it has."""
    written = number = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            text, domain = texts[number % len(texts)]
            text = f"{number} {text}"
            file.write(json.dumps({"text": text, "domain": domain, "source": f"source {number // 4}"}) + "\n")
            written += len(text.encode())
            number += 1
    return written


def _start(began: float, path: str, folder: str) -> None:
    """Train one step on this text and print, as JSON, the seconds of each phase since `began`, and the memory."""
    phases: dict[str, float] = {}

    def ended(phase: str) -> None:
        phases[phase] = time.time() - began - sum(phases.values())

    import torch

    from moe_core.config import load_config
    from moe_core.data.prepare import prepare_data
    from moe_core.runs.folder import RunFolder
    from moe_core.training.trainer import Trainer

    ended("imports")
    config = load_config("quick", overrides={"data.path": path})
    data_begins = time.process_time()
    data = prepare_data(config)
    processor = time.process_time() - data_begins
    ended("data")
    run = RunFolder("started", folder)
    run.path.mkdir(exist_ok=True)
    Trainer.begin(run, config, data, torch.device("cpu")).step()
    ended("model and one step")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    found = {"seconds": phases, "processor": processor, "peak_mib": peak, "tokens": len(data.train)}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    _start(float(sys.argv[1]), *sys.argv[2:])
