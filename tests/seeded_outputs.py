"""What a refactoring must leave as it is: `python tests/seeded_outputs.py OUT` writes seeded results without times.

Run it before and after, on the same machine, then `diff -r BEFORE AFTER`. It computes, with one thread:

  metrics.jsonl, evaluation.json, report.md   of a short seeded run
  weights.json    SHA-256 of the weights of every router, 40 steps at once and 20 + 20 with a resume between
  plots/*.csv     every figure of the shipped demo
  demo.json       the demo's evaluation; greedy.txt, greedy_model.txt: the likeliest text of the demo and of its export
  ablate.json     the effect of every expert of the short run; suite.json: its suite
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

ROOT = Path.cwd()
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

TIMES = {
    "tokens_per_second", "elapsed_seconds", "seconds", "started_at", "updated_at", "finished_at", "pid",
}  # fmt: skip


def timeless(value: Any) -> Any:
    """`value` without what the clock says, at any depth."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in TIMES}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def main(out: Path) -> None:
    from moe_core.runs.places import SHIPPED

    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["MOESCOPE_CHECKPOINTS"] = folder
        shutil.copytree(SHIPPED / "demo", root / "demo")
        weights(root, out)
        short_run(root, out)
        of_the_demo(root, out)


def weights(root: Path, out: Path) -> None:
    from training_support import make_config, tensor_hashes, write_corpus

    from moe_core.config import Config
    from moe_core.runs.folder import RunFolder
    from moe_core.training.loop import train

    corpus = write_corpus(root / "corpus.jsonl")
    found: dict[str, dict[str, str]] = {}
    for kind in get_args(type(Config().model.router).model_fields["kind"].annotation):
        config = make_config(corpus, model__router={"kind": kind}, training__steps=40)
        whole, parted = RunFolder(f"{kind}-whole", root), RunFolder(f"{kind}-parted", root)
        train(whole, config)
        steps = iter(range(1_000_000))
        train(parted, config, stop=lambda steps=steps: next(steps) >= 20)
        assert train(parted, config, resume=True).step == 40
        found[kind] = tensor_hashes(whole)
        assert tensor_hashes(parted)["model.safetensors"] == found[kind]["model.safetensors"], kind
    (out / "weights.json").write_text(json.dumps(found, indent=1))


def short_run(root: Path, out: Path) -> None:
    command(
        "--quick", "--run", "short", "--seed", "3", "--data.documents", "40", "--training.steps", "40",
        "--training.threads", "1", "--training.time_budget_seconds", "none", "--training.evaluation_interval", "20",
    )  # fmt: skip
    lines = (root / "short" / "metrics.jsonl").read_text().splitlines()
    (out / "metrics.jsonl").write_text("".join(json.dumps(timeless(json.loads(line))) + "\n" for line in lines))
    evaluation = command("--evaluate", "--run", "short", "--json")
    (out / "evaluation.json").write_text(json.dumps(timeless(json.loads(evaluation)), indent=1))
    shutil.copy(root / "short" / "report.md", out / "report.md")
    ablation = json.loads(command("ablate", "--run", "short", "--layer", "1", "--json"))
    (out / "ablate.json").write_text(json.dumps(timeless(ablation), indent=1))
    suite = json.loads(command("--evaluate", "--suite", "--run", "short", "--json"))
    (out / "suite.json").write_text(json.dumps(timeless(suite), indent=1))


def of_the_demo(root: Path, out: Path) -> None:
    command("plots", "--run", "demo", "--out", str(out / "plots"), "--format", "csv")
    (out / "demo.json").write_text(command("--evaluate", "--run", "demo", "--json"))
    command("report", "--run", "demo", "--out", str(root / "report.html"))
    html = (root / "report.html").read_text()
    words = re.findall(r"<(?:p|td|th|h[1-4])[^>]*>(.*?)</", re.sub(r"Report of [0-9: -]+", "", html))
    (out / "report_words.txt").write_text("\n".join(words))
    greedy = ("--prompt", "The tenant shall", "--max-new-tokens", "40", "--temperature", "0")
    (out / "greedy.txt").write_text(command("generate", "--run", "demo", *greedy))
    command("export", "--run", "demo", "--to", str(root / "exported"))
    (out / "greedy_model.txt").write_text(command("generate", "--model", str(root / "exported"), *greedy))


def command(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "main.py", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
