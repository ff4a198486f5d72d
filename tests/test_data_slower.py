"""data prepare killed at random moments, and its memory against the text's size; `make test-slow` runs these."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from data_gen import generate_corpus

ROOT = Path(__file__).resolve().parents[1]
KILLS = 12
pytestmark = pytest.mark.slower


def write_text(path: Path, size: int) -> Path:
    """About `size` bytes of synthetic documents, no two of them alike, as .jsonl."""
    rows = [row for row in generate_corpus(300, seed=1) if row.split == "train"]
    chooser, written, number = random.Random(0), 0, 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            row = chooser.choice(rows)
            text = f"{row.text[chooser.randrange(len(row.text)) :]} {row.text} {number}"
            written += len(text.encode())
            print(json.dumps({"text": text, "domain": row.domain, "source": f"s{number // 3}"}), file=file)
            number += 1
    return path


def command(text: Path, out: Path, *more: str) -> list[str]:
    options = ["--vocab-size", "2000", "--shard-tokens", "50000", "--workers", "2"]
    return [sys.executable, str(ROOT / "main.py"), "data", "prepare", str(text), "--out", str(out), *options, *more]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.jsonl", 6_000_000)
    started = time.monotonic()
    subprocess.run(command(text, tmp_path / "whole"), check=True, capture_output=True)
    whole = time.monotonic() - started
    expected = contents(tmp_path / "whole")
    chooser, kills, out = random.Random(1), 0, tmp_path / "killed"
    stages = set()
    while kills < KILLS or not (out / "index.json").exists() or (out / "unfinished.json").exists():
        begun = out.exists() and any(out.iterdir())
        if begun and (out / "index.json").exists() and not (out / "unfinished.json").exists():
            assert contents(out) == expected
            out, begun = tmp_path / f"killed {kills}", False
        process = subprocess.Popen(command(text, out, *(["--resume"] if begun else [])), stderr=subprocess.PIPE)
        try:
            process.communicate(timeout=chooser.uniform(0.2, 1.0) * whole if kills < KILLS else None)
            assert process.returncode == 0
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            if (out / "unfinished.json").exists():
                journal = json.loads((out / "unfinished.json").read_text())
                stages.add((journal["codes_sha256"] is not None, journal["tokenizer_sha256"] is not None))
    assert contents(out) == expected
    assert len(stages) >= 2


def peak_bytes(arguments: Sequence[str]) -> int:
    """Of a process of its own."""
    code = (
        "import re, sys\nfrom pathlib import Path\nfrom moe_core.cli.main import main\nassert main(sys.argv[1:]) == 0\n"
        "print('peak', re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True, cwd=ROOT
    )
    found = re.search(r"peak (\d+)", done.stdout)
    assert found
    return int(found[1]) * 1024


def test_memory_hardly_grows_with_the_text(tmp_path: Path) -> None:
    """With a tokenizer that is given: one that is trained takes memory for its part of the text, which is bounded."""
    small = write_text(tmp_path / "first.jsonl", 1_000_000)
    subprocess.run(command(small, tmp_path / "first"), check=True, capture_output=True)
    sizes, peaks = [20_000_000, 40_000_000, 80_000_000], []
    for size in sizes:
        text = write_text(tmp_path / f"{size}.jsonl", size)
        given = [
            "--tokenizer",
            str(tmp_path / "first" / "tokenizer.json"),
            "--shard-tokens",
            "500000",
            "--workers",
            "2",
        ]
        peaks.append(peak_bytes(["data", "prepare", str(text), "--out", str(tmp_path / str(size)), *given]))
        text.unlink()
    slope = np.polyfit(sizes, peaks, 1)[0]
    assert slope < 0.2, f"{slope:.3f} bytes a byte of text: {[peak // 2**20 for peak in peaks]} MiB"
    assert peaks[-1] < 2**30


def test_memory_of_looking_for_copies_hardly_grows_with_the_text(tmp_path: Path) -> None:
    """Some bytes a document, never its text."""
    sizes, peaks = [10_000_000, 20_000_000, 40_000_000], []
    for size in sizes:
        text = write_text(tmp_path / f"{size}.jsonl", size)
        peaks.append(peak_bytes(["data", "dedup", str(text), "--out", str(tmp_path / f"{size}.out"), "--exact-only"]))
        text.unlink()
    slope = np.polyfit(sizes, peaks, 1)[0]
    assert slope < 0.5, f"{slope:.3f} bytes a byte of text: {[peak // 2**20 for peak in peaks]} MiB"
