"""Training in several gloo processes of this machine: the same losses as one process, one run folder, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from training_support import make_config, write_corpus

from moe_core.config import Config, validate_config
from moe_core.errors import UsageError
from moe_core.runs.checkpoint import load_run
from moe_core.runs.folder import RunFolder
from moe_core.training.loop import train
from moe_core.training.parallel.mesh import check_layout

ROOT = Path(__file__).resolve().parent.parent
WORKER = ROOT / "tests" / "ranks_worker.py"
DETERMINISTIC: dict[str, dict[str, Any]] = {
    "softmax": {},
    "global_batch": {"balancing": "global_batch"},
    "cv_squared": {"balancing": "cv_squared"},
    "bias": {"balancing": "bias"},
    "sigmoid": {"kind": "sigmoid"},
    "hash": {"kind": "hash"},
    "top_p": {"kind": "top_p"},
    "expert_threshold": {"kind": "expert_threshold"},
    "document_pool": {"kind": "document_pool"},
}
"""Routers whose choice for a token depends on nothing that is drawn, and on no token of another sequence."""


class Case(NamedTuple):
    """One run of the worker."""

    run: str
    config: Mapping[str, Any]
    resume: Mapping[str, Any] | None = None


def configuration(corpus: Path, layout: Mapping[str, int], **changes: Any) -> dict[str, Any]:
    """20 steps of 8 x 16 tokens, in float32, AdamW; `layout` gives the ranks."""
    changes = {"training__optimizer": "adamw", "training__batch_size": 8, "model__num_kv_heads": 2, **changes}
    return make_config(corpus, training__evaluation_interval=20, **changes).model_dump() | {"parallel": dict(layout)}


def train_in(processes: int, cases: list[Case], root: Path) -> None:
    """Train all cases, one after another, in so many processes; they end with the call, whatever happens."""
    file = root / "cases.json"
    file.write_text(json.dumps([{**case._asdict(), "root": str(root)} for case in cases]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(WORKER), str(file)], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]


def losses(run: RunFolder) -> list[tuple[float, ...]]:
    """Of every step, and nats of the evaluations."""
    keys = ("loss", "load_balancing_loss", "router_z_loss")
    steps = [tuple(record[key] for key in keys) for record in run.metric_records("train")]
    assert len(steps) == 20
    return steps + [(record["nats_per_token"],) for record in run.metric_records("evaluation")]


def largest_difference(run: RunFolder, other: RunFolder) -> float:
    pairs = zip(losses(run), losses(other), strict=True)
    return max(abs(a - b) for one, two in pairs for a, b in zip(one, two, strict=True))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text.jsonl")


def one_process(corpus: Path, root: Path, name: str, **changes: Any) -> RunFolder:
    run = RunFolder(f"one-{name}", root)
    train(run, validate_config(configuration(corpus, {}, **changes)))
    return run


LAYOUTS_OF_TWO = ({"data": 2}, {"shard": 2}, {"expert": 2}, {"tensor": 2})


def compare(corpus: Path, root: Path, table: list[tuple[str, dict[str, int]]], processes: int) -> dict[str, float]:
    """The largest difference of a loss to one process, of each router in each layout."""
    ones = {router: one_process(corpus, root, router, **changes_of(router)) for router in dict(table)}
    cases = {
        f"{router}-{'-'.join(f'{key}{size}' for key, size in layout.items())}": (router, layout)
        for router, layout in table
    }
    train_in(
        processes,
        [Case(run, configuration(corpus, layout, **changes_of(router))) for run, (router, layout) in cases.items()],
        root,
    )
    assert not list(root.glob("*.error"))
    return {run: largest_difference(RunFolder(run, root), ones[router]) for run, (router, _) in cases.items()}


def changes_of(router: str) -> dict[str, Any]:
    parts = {"training__gradient_accumulation": 2} if router == "global_batch" else {}
    return {"model__router": DETERMINISTIC[router], **parts}


def test_two_processes_have_the_losses_of_one(corpus: Path, tmp_path: Path) -> None:
    """Every layout with one router, and every way to balance in one layout; one launch for all."""
    table = [("softmax", layout) for layout in LAYOUTS_OF_TWO]
    table += [(router, LAYOUTS_OF_TWO[0]) for router in ("global_batch", "bias", "expert_threshold")]
    found = compare(corpus, tmp_path, table, 2)
    assert max(found.values()) < 1e-5, found
    run = RunFolder("softmax-shard2", tmp_path)
    status = run.status()
    assert status is not None
    assert (status.state, status.step, status.tokens) == ("finished", 20, 20 * 8 * 16)
    assert "parallel" not in json.loads((run.path / "config.json").read_text())
    assert load_run(run.name, tmp_path).step == 20, "an ordinary checkpoint, for every reader"


@pytest.mark.slower
def test_every_deterministic_router_in_every_layout_of_two(corpus: Path, tmp_path: Path) -> None:
    found = compare(corpus, tmp_path, [(r, layout) for r in DETERMINISTIC for layout in LAYOUTS_OF_TWO], 2)
    assert max(found.values()) < 1e-4, (
        found
    )  # where two logits are equal but for rounding, a token may choose otherwise
    assert sum(difference > 1e-5 for difference in found.values()) <= 2, found


def parallel(config: Config, **layout: int) -> Config:
    return validate_config(config.model_dump() | {"parallel": layout})


@pytest.mark.parametrize(
    ("layout", "processes", "message"),
    [
        ({"data": 2}, 1, "start them with torchrun --nproc-per-node 2"),
        ({"data": 2}, 4, "is 2 of 4 processes"),
        ({}, 2, "is 1 of 2 processes"),
        ({"data": 3}, 3, "training.batch_size = 4 is not a multiple of 3"),
        ({"expert": 3}, 3, "not a multiple"),
        ({"tensor": 2}, 2, "does not divide model.num_kv_heads = 1"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(
    layout: dict[str, int], processes: int, message: str, corpus: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        check_layout(parallel(make_config(corpus), **layout), processes)


def test_experts_that_cannot_be_divided_and_float16_are_refused(corpus: Path) -> None:
    with pytest.raises(UsageError, match=r"parallel.expert = 4 does not divide model.num_experts = 6"):
        check_layout(parallel(make_config(corpus, model__num_experts=6), expert=4), 4)
    with pytest.raises(UsageError, match="has no experts"):
        check_layout(parallel(make_config(corpus, model__first_dense_layers=2), expert=2), 2)
    with pytest.raises(UsageError, match="float16 scales the loss in one process"):
        check_layout(parallel(make_config(corpus, training__autocast="float16"), data=2), 2)
