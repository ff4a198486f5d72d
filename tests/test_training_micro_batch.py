"""Memory that ends within a step: the step is done again in smaller parts, and nothing else changes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_support import begin_trainer, make_config, saved_and_restored, tensor_hashes, write_corpus

from moe_core.config import Config
from moe_core.errors import RunError, UsageError
from moe_core.model import size
from moe_core.runs import RunFolder
from moe_core.training import loop, micro_batch
from moe_core.training.loop import train
from moe_core.training.micro_batch import in_parts_that_fit, next_parts
from moe_core.training.parallel.mesh import check_layout
from moe_core.training.trainer import Trainer

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parent.parent
NOISY: dict[str, Any] = {"noise_std": 0.5, "kind": "sigmoid", "expert_dropout": 0.3}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text.jsonl")


def cuda_error() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def cpu_error() -> Exception:
    return RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to")


def end_memory(trainer: Trainer, most: int, *, where: str, error: Callable[[], Exception]) -> None:
    """Let a pass of more than `most` sequences run out of memory, at its end or in its backward pass."""

    def hook(module: torch.nn.Module, arguments: object, output: Tensor) -> None:  # noqa: ARG001
        if module.training and len(output) > most:
            if where == "forward":
                raise error()

            def fail(gradient: Tensor) -> None:  # noqa: ARG001
                raise error()

            output.register_hook(fail)

    module = trainer.model.norm if where == "forward" else trainer.model.layers[0].attention_norm
    module.register_forward_hook(hook)


@pytest.mark.parametrize(("where", "error"), [("forward", cuda_error), ("backward", cpu_error)])
def test_the_run_is_that_of_so_many_parts_from_the_start_and_stays_so_when_resumed(
    where: str, error: Callable[[], Exception], corpus: Path, tmp_path: Path
) -> None:
    def config(parts: int) -> Config:
        return make_config(corpus, training__gradient_accumulation=parts, model__router=NOISY, training__batch_size=4)

    expected = begin_trainer(RunFolder("one", tmp_path / "expected"), config(4))
    for _ in range(4):
        expected.step()
    expected.save()
    trainer = begin_trainer(RunFolder("one", tmp_path / "found"), config(1))
    end_memory(trainer, 1, where=where, error=error)
    for step in range(4):
        if step == 2:
            trainer = saved_and_restored(trainer)
            end_memory(trainer, 1, where=where, error=error)
        trainer.step()
    trainer.save()
    assert tensor_hashes(trainer.run) == tensor_hashes(expected.run)
    events = [record["message"] for record in trainer.run.metric_records("event")]
    assert events == [
        "step 1: out of memory with 4 sequences at a time; going on with 2",
        "step 1: out of memory with 2 sequences at a time; going on with 1",
    ]
    assert trainer.state.parts == 4
    train_lines = [timeless(record) for record in trainer.run.metric_records("train")]
    assert train_lines == [timeless(record) for record in expected.run.metric_records("train")]


def timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in ("tokens_per_second", "elapsed_seconds")}


def test_where_one_sequence_does_not_fit_the_run_ends_and_says_what_to_do(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder("one", tmp_path)
    config = make_config(corpus)

    class Refusing(Trainer):
        def _gradient(self) -> Any:
            if self.state.step == 3:
                end_memory(self, 0, where="forward", error=cpu_error)
            return super()._gradient()

    with monkeypatch.context() as patch:
        patch.setattr(loop, "Trainer", Refusing)
        with pytest.raises(RunError, match=r"one sequence .* is intact: resume with"):
            train(run, config)
    status = run.status()
    assert status is not None
    assert status.state == "failed"
    assert train(run, config, resume=True).state == "finished", "with more memory"


def test_other_errors_are_not_taken_for_it(corpus: Path, tmp_path: Path) -> None:
    trainer = begin_trainer(RunFolder("one", tmp_path), make_config(corpus))
    end_memory(trainer, 0, where="forward", error=lambda: RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        trainer.step()
    assert trainer.state.parts == 1


def test_one_of_several_processes_does_not_begin_anew_where_others_wait_for_it() -> None:
    def fail(_: int) -> None:
        raise cuda_error()

    told: list[int] = []
    with pytest.raises(RunError, match=r"memory ended in one of several processes.*--parallel\.shard"):
        in_parts_that_fit(fail, torch.nn.Linear(2, 2), parts=1, batch_size=6, smaller=told.append, alone=False)
    assert told == []
    several = Config.model_validate({"training": {"micro_batch": "auto"}, "parallel": {"data": 2}})
    with pytest.raises(UsageError, match="micro_batch = auto looks at the memory of one process only"):
        check_layout(several, 2)


def test_parts_split_the_batch_evenly() -> None:
    assert [next_parts(parts, 12) for parts in (1, 2, 3, 4, 6, 12)] == [2, 4, 6, 12, 12, None]
    assert next_parts(1, 7) == 7
    assert next_parts(1, 1) is None


def test_auto_begins_with_the_fewest_parts_that_fit(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(corpus, training__micro_batch="auto", training__batch_size=8)
    needs = [size.training_memory(config, parts=parts) for parts in (1, 2, 4, 8)]
    for number, need in enumerate(needs):
        monkeypatch.setattr(micro_batch, "memory_free", lambda _, need=need: need.total - need.gradients)
        assert micro_batch.first_parts(config, CPU, autocast=False) == 2**number
    monkeypatch.setattr(micro_batch, "memory_free", lambda _: 0)
    assert micro_batch.first_parts(config, CPU, autocast=False) == 8
    assert begin_trainer(RunFolder("one", tmp_path), config).state.parts == 8
    fixed = make_config(corpus, training__batch_size=8)
    assert micro_batch.first_parts(fixed, CPU, autocast=False) == 1
    assert "micro_batch" not in fixed.model_dump_json()


def test_what_is_free_is_less_than_what_there_is_in_a_container_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < micro_batch.memory_free(CPU) < size.memory_present()
    small = micro_batch.memory_now(CPU).now + 2**27
    monkeypatch.setattr(micro_batch, "memory_present", lambda: small)
    assert 0 < micro_batch.memory_free(CPU) < 2**28


LIMITED = """
import resource, sys
from pathlib import Path
sys.path.insert(0, "tests")
from training_support import begin_trainer, make_config, write_corpus
from moe_core.runs import RunFolder

root = Path(sys.argv[1])
config = make_config(
    write_corpus(root / "text.jsonl"),
    training__batch_size=32, training__seq_len=256, model__max_seq_len=256, model__dim=64,
)
trainer = begin_trainer(RunFolder("one", root), config)
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
limits = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (now + 2**25, limits[1]))  # a whole batch takes more than twice as much
for _ in range(2):
    trainer.step()
resource.setrlimit(resource.RLIMIT_AS, limits)
print(trainer.state.parts, *(record["message"] for record in trainer.run.metric_records("event")), sep="|")
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits the address space as Linux does")
def test_an_allocator_that_refuses_is_understood(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    parts, *events = done.stdout.strip().split("|")
    assert int(parts) > 1
    assert events[0] == "step 1: out of memory with 32 sequences at a time; going on with 16"
