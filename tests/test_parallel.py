"""Training in several gloo processes of this machine: the same losses as one process, one run folder, refusals."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from training_support import make_config, write_corpus

from moe_core.config import Config, validate_config
from moe_core.errors import UsageError
from moe_core.runs.checkpoint import find_checkpoint, load_run
from moe_core.runs.folder import RunFolder
from moe_core.runs.sharded import newest_sharded
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
    stop_at: int | None = None
    copy_of: str | None = None


def configuration(corpus: Path, layout: Mapping[str, int], **changes: Any) -> dict[str, Any]:
    """20 steps of 8 x 16 tokens, in float32, AdamW; `layout` gives the ranks."""
    changes = {
        "training__seed": 2,
        "training__optimizer": "adamw",
        "training__batch_size": 8,
        "model__num_kv_heads": 2,
        "training__evaluation_interval": 20,
        **changes,
    }
    return make_config(corpus, **changes).model_dump() | {"parallel": dict(layout)}


@contextmanager
def processes_of(count: int, cases: list[Case], root: Path) -> Iterator[subprocess.Popen[str]]:
    """torchrun with so many processes that train all cases, one after another; all are gone afterwards."""
    file = root / "cases.json"
    file.write_text(json.dumps([{**case._asdict(), "root": str(root)} for case in cases]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    with (root / "output.txt").open("w") as output:
        launcher = subprocess.Popen(
            [*command, str(WORKER), str(file)], env=environment, stdout=output, stderr=output, text=True
        )
        try:
            yield launcher
        finally:
            for process in children_of(launcher.pid) if launcher.poll() is None else []:
                os.kill(process, signal.SIGKILL)
            launcher.kill()
            launcher.wait()


def children_of(parent: int) -> list[int]:
    """Process ids, the oldest first."""
    return sorted(int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split())


def train_in(count: int, cases: list[Case], root: Path) -> None:
    """Train all cases in so many processes."""
    with processes_of(count, cases, root) as launcher:
        assert launcher.wait(280) == 0, (root / "output.txt").read_text()[-3000:]
    assert not [error.read_text() for error in root.glob("*.error")]


def wait_for(launcher: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    while not condition():  # pytest's timeout ends what never comes
        assert launcher.poll() is None, "it ended before"
        time.sleep(0.01)


def is_running(run: RunFolder, processes: list[int]) -> bool:
    """Whether one of these trains it."""
    status = run.status()
    return status is not None and status.state == "running" and status.pid in processes


def kill_one(launcher: subprocess.Popen[str], rank: int, run: RunFolder, step: int) -> None:
    """End a process of the training as a fault would, once the run has come to `step`; torchrun ends the others."""
    wait_for(launcher, lambda: any(r["step"] >= step for r in run.metric_records("train")))
    os.kill(children_of(launcher.pid)[rank], signal.SIGKILL)
    assert launcher.wait(120) != 0


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
OF_FOUR: tuple[dict[str, int], ...] = (
    {"data": 2, "shard": 2},
    {"data": 2, "expert": 2},
    {"data": 2, "tensor": 2},
    {"shard": 2, "expert": 2},
    {"shard": 2, "tensor": 2},
    {"expert": 2, "tensor": 2},
    {"data": 4},
    {"shard": 4},
    {"expert": 4},
)


def compare(corpus: Path, root: Path, table: list[tuple[str, dict[str, int]]], processes: int) -> dict[str, float]:
    """The largest difference of a loss to one process, of each router in each layout."""
    ones = {router: one_process(corpus, root, router, **changes_of(router)) for router in dict(table)}
    cases = {name_of(router, layout): (router, layout) for router, layout in table}
    train_in(
        processes,
        [Case(run, configuration(corpus, layout, **changes_of(router))) for run, (router, layout) in cases.items()],
        root,
    )
    return {run: largest_difference(RunFolder(run, root), ones[router]) for run, (router, _) in cases.items()}


def name_of(router: str, layout: Mapping[str, int]) -> str:
    return "-".join([router, *(f"{key}{size}" for key, size in layout.items())])


def changes_of(router: str) -> dict[str, Any]:
    parts = {"training__gradient_accumulation": 2} if router == "global_batch" else {}
    return {"model__router": DETERMINISTIC[router], **parts}


TABLE = [("softmax", layout) for layout in LAYOUTS_OF_TWO]
TABLE += [(router, LAYOUTS_OF_TWO[0]) for router in ("global_batch", "bias", "expert_threshold")]
# What looks at a whole batch looks at the rank's part of it: the same as in one process that passes as many parts.
BY_RANK: dict[str, dict[str, Any]] = {
    "capacity": {"model__capacity_factor": 1.0, "model__router": {"load_balancing_loss_coef": 0.0}},
    "expert_choice": {"model__router": {"kind": "expert_choice"}},
}
NOISE: dict[str, Any] = {"model__router": {"noise_std": 0.5}}
KILLED: dict[str, Any] = {**NOISE, "training__steps": 100, "training__evaluation_interval": 50}


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two processes, trained in one launch, whose second process is killed in the last of them; and the same
    runs of one process."""
    root = tmp_path_factory.mktemp("runs")
    for router in dict(TABLE):
        one_process(corpus, root, router, **changes_of(router))
    for name, changes in BY_RANK.items():
        one_process(corpus, root, name, **changes, training__gradient_accumulation=2)
    data, shard = LAYOUTS_OF_TWO[:2]
    cases = [Case(name_of(*row), configuration(corpus, row[1], **changes_of(row[0]))) for row in TABLE]
    cases += [
        *(Case(name, configuration(corpus, data, **changes)) for name, changes in BY_RANK.items()),
        Case("offloaded", configuration(corpus, {**shard, "offload": True})),
        Case("noisy", configuration(corpus, data, **NOISE)),
        Case("noisy-half", configuration(corpus, data, **NOISE), stop_at=10),
        Case("noisy-resumed", configuration(corpus, data, **NOISE), resumed(data), copy_of="noisy-half"),
        Case("half", configuration(corpus, data), stop_at=10),
        Case("half-moved", configuration(corpus, shard), resumed(shard), copy_of="half"),
        Case("whole", configuration(corpus, data, **KILLED)),
        Case("killed", configuration(corpus, {**data, "save_interval": 3}, **KILLED)),
    ]
    with processes_of(2, cases, root) as launcher:
        kill_one(launcher, 1, RunFolder("killed", root), step=25)
    assert {error.name for error in root.glob("*.error")} <= {"killed.error"}
    (root / "killed.error").unlink(missing_ok=True)
    return root


def test_two_processes_have_the_losses_of_one(trained: Path) -> None:
    """Every layout with one router, and every way to balance in one layout."""
    for row in TABLE:
        run, one = RunFolder(name_of(*row), trained), RunFolder(f"one-{row[0]}", trained)
        assert largest_difference(run, one) < 1e-5, run.name
    assert largest_difference(RunFolder("offloaded", trained), RunFolder("softmax-shard2", trained)) == 0
    run = RunFolder("softmax-shard2", trained)
    status = run.status()
    assert status is not None
    assert (status.state, status.step, status.tokens) == ("finished", 20, 20 * 8 * 16)
    assert "parallel" not in json.loads((run.path / "config.json").read_text())
    assert load_run(run.name, trained).step == 20, "an ordinary checkpoint, for every reader"


@pytest.mark.parametrize("name", BY_RANK)
def test_what_looks_at_a_whole_batch_looks_at_the_ranks_part(name: str, trained: Path) -> None:
    both = [
        [record["loss"] for record in RunFolder(run, trained).metric_records("train")] for run in (name, f"one-{name}")
    ]
    assert len(both[0]) == 20
    assert np.abs(np.subtract(*both)).max() < 1e-5
    dropped = [record["dropped_fraction"] for record in RunFolder(name, trained).metric_records("train")]
    assert max(dropped) > 0, "the limit is felt"


def test_a_run_goes_on_in_another_layout_and_to_the_bit_in_its_own(corpus: Path, trained: Path) -> None:
    """With noise, so that the random numbers of both ranks must be in the checkpoint."""
    assert weights_of(RunFolder("noisy-resumed", trained)) == weights_of(RunFolder("noisy", trained))
    one = RunFolder("one-softmax", trained)
    assert largest_difference(RunFolder("half-moved", trained), one) < 1e-5
    half = RunFolder("half", trained)
    train(half, validate_config(configuration(corpus, {})), resume=True)
    assert largest_difference(half, one) < 1e-5, "and in one process"


def test_a_run_whose_process_was_killed_ends_as_if_nothing_had_happened(corpus: Path, trained: Path) -> None:
    """With checkpoints in parts: the ordinary one is of step 0. They are taken up by one process, too."""
    killed, moved = RunFolder("killed", trained), RunFolder("killed-moved", trained)
    assert load_run("killed", trained).step == 0
    assert newest_sharded(killed, after=12) is not None
    shutil.copytree(killed.path, moved.path)
    seen: list[int] = []
    train(
        moved,
        validate_config(configuration(corpus, {}, **KILLED)),
        resume=True,
        progress=lambda stage, done, _: seen.append(done) if stage == "training" else None,
    )
    assert seen[0] > 12, "it went on from the parts"
    assert load_run("killed-moved", trained).step == 100
    assert newest_sharded(moved, after=0) is None
    layout = LAYOUTS_OF_TWO[0]
    train_in(2, [Case("killed", configuration(corpus, layout, **KILLED), resumed(layout))], trained)
    assert weights_of(killed) == weights_of(RunFolder("whole", trained))


@pytest.mark.slower
def test_twenty_kills_at_random_moments_change_nothing(corpus: Path, tmp_path: Path) -> None:
    generator = random.Random(0)
    layout = LAYOUTS_OF_TWO[1]
    config = configuration(corpus, {**layout, "save_interval": 7}, **{**KILLED, "training__steps": 400})
    train_in(2, [Case("whole", config)], tmp_path)
    steps: list[int] = []
    for number in range(20):
        with processes_of(2, [Case("killed", config, resumed(layout))], tmp_path) as launcher:
            if number % 5:  # every fifth kill comes while they start
                wait_for(launcher, lambda: is_running(RunFolder("killed", tmp_path), children_of(launcher.pid)))
            time.sleep(generator.uniform(0.0, 3.0))
            if len(ranks := children_of(launcher.pid)) == 2:
                os.kill(generator.choice(ranks), signal.SIGKILL)
                assert launcher.wait(120) != 0
        steps.append(max((r["step"] for r in RunFolder("killed", tmp_path).metric_records("train")), default=0))
    print(steps)
    (tmp_path / "killed.error").unlink(missing_ok=True)
    train_in(2, [Case("killed", config, resumed(layout))], tmp_path)
    assert weights_of(RunFolder("killed", tmp_path)) == weights_of(RunFolder("whole", tmp_path))


@pytest.mark.slower
def test_every_deterministic_router_in_every_layout_of_two(corpus: Path, tmp_path: Path) -> None:
    found = compare(corpus, tmp_path, [(r, layout) for r in DETERMINISTIC for layout in LAYOUTS_OF_TWO], 2)
    print(found)
    assert max(found.values()) < 1e-5, found


@pytest.mark.slower
def test_products_of_two_dimensions_on_four_processes(corpus: Path, tmp_path: Path) -> None:
    found = compare(corpus, tmp_path, [(router, layout) for router in ("softmax", "sigmoid") for layout in OF_FOUR], 4)
    print(found)
    assert max(found.values()) < 1e-5, found


@pytest.mark.slower
def test_muon_orthogonalises_whole_matrices_in_every_layout(corpus: Path, tmp_path: Path) -> None:
    one = one_process(corpus, tmp_path, "muon", training__optimizer="muon")
    cases = [
        Case(f"muon-{place}", configuration(corpus, layout, training__optimizer="muon"))
        for place, layout in enumerate(OF_FOUR)
    ]
    train_in(4, cases, tmp_path)
    found = {case.run: largest_difference(RunFolder(case.run, tmp_path), one) for case in cases}
    print(found)
    assert max(found.values()) < 1e-5, found


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
    with pytest.raises(UsageError, match=r"parallel.pipeline = 2: layers are not divided .* use --parallel.shard"):
        parallel(make_config(corpus), pipeline=2)
    with pytest.raises(UsageError, match=r"parallel.offload = true is FSDP's and needs --parallel.shard"):
        check_layout(parallel(make_config(corpus), data=2, offload=True), 2)
    with pytest.raises(UsageError, match="float16 scales the loss in one process"):
        check_layout(parallel(make_config(corpus, training__autocast="float16"), data=2), 2)


def resumed(layout: Mapping[str, int]) -> dict[str, int]:
    return {f"parallel.{key}": size for key, size in layout.items()}


def weights_of(run: RunFolder) -> dict[str, bytes]:
    """Weights and optimizer state of the newest checkpoint, to the bit."""
    folder = find_checkpoint(run)
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "trainer.safetensors")}


@pytest.mark.slower
def test_every_layout_of_two_goes_on_as_every_other(corpus: Path, tmp_path: Path) -> None:
    one = one_process(corpus, tmp_path, "plain")
    names = ["-".join(layout) for layout in LAYOUTS_OF_TWO]
    cases = [
        Case(name, configuration(corpus, layout), stop_at=10)
        for name, layout in zip(names, LAYOUTS_OF_TWO, strict=True)
    ]
    cases += [
        Case(f"{name}-{other}", configuration(corpus, layout), resumed(layout), copy_of=name)
        for name in names
        for other, layout in zip(names, LAYOUTS_OF_TWO, strict=True)
    ]
    train_in(2, cases, tmp_path)
    found = {case.run: largest_difference(RunFolder(case.run, tmp_path), one) for case in cases if case.copy_of}
    for name in names:
        train(RunFolder(name, tmp_path), validate_config(configuration(corpus, {})), resume=True)
        found[f"{name}-one"] = largest_difference(RunFolder(name, tmp_path), one)
    print(found)
    assert max(found.values()) < 1e-5, found
