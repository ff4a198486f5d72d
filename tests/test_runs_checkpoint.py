"""Checkpoints: what was saved loads; what was damaged, cut, forged or half written is refused in one line."""

from __future__ import annotations

import json
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_support import make_config

from moe_core.config import Config
from moe_core.data.tokenizer import Tokenizer
from moe_core.errors import RunError, UsageError
from moe_core.model.transformer import MoETransformer
from moe_core.runs import RunFolder, RunStatus
from moe_core.runs.checkpoint import (
    checkpoint_steps,
    find_checkpoint,
    load_run,
    load_trainer_state,
    save_checkpoint,
    slim_run,
)
from moe_core.runs.files import sha256_of

ROOT = Path(__file__).resolve().parent.parent


class Saver:
    """A run folder with a random tiny model in it."""

    def __init__(self, root: Path) -> None:
        self.tokenizer = Tokenizer.train(["to be or not to be, that is the question"] * 3, 270)
        self.config: Config = make_config(root / "none.jsonl", model__vocab_size=self.tokenizer.vocab_size)
        self.run = RunFolder("one", root)
        torch.manual_seed(0)
        self.model = MoETransformer(self.config.model)
        self.state = {"optimizer.x.momentum": torch.arange(5.0), "rng.cpu": torch.get_rng_state()}

    def save(self, step: int, *, trainer: bool = True) -> Path:
        return save_checkpoint(
            self.run,
            step=step,
            model=self.model,
            tokenizer=self.tokenizer,
            config=self.config,
            trainer_state=self.state if trainer else None,
            trainer_meta={"step": step} if trainer else None,
        )


@pytest.fixture
def saver(tmp_path: Path) -> Saver:
    saver = Saver(tmp_path)
    saver.run.create(saver.config)
    return saver


def test_what_was_saved_loads(saver: Saver) -> None:
    saver.save(7)
    rng = torch.get_rng_state()
    loaded = load_run("one", saver.run.root)
    assert torch.equal(torch.get_rng_state(), rng), "loading must not move the caller's random numbers"
    assert (loaded.step, loaded.config, loaded.run.name) == (7, saver.config, "one")
    assert not loaded.model.training
    assert loaded.tokenizer.encode("to be") == saver.tokenizer.encode("to be")
    saved, now = saver.model.state_dict(), loaded.model.state_dict()
    assert saved.keys() == now.keys()
    assert all(torch.equal(saved[name], now[name]) for name in saved)
    tensors, meta = load_trainer_state(saver.run)
    assert meta == {"step": 7}
    assert all(torch.equal(tensors[name], saver.state[name]) for name in saver.state)
    assert load_run("one", saver.run.root, dtype=torch.bfloat16).model.embedding.weight.dtype == torch.bfloat16


def test_a_run_is_loaded_without_the_compiler() -> None:
    """Random values for a model without memory would load it, which takes longer than all the rest."""
    code = (
        "import sys\n"
        "from moe_core.runs.checkpoint import load_run\n"
        "weights = load_run('demo').model.embedding.weight\n"
        "assert weights.std() > 0.001\n"
        "print([name for name in ('torch._dynamo', 'sympy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_newest_two_are_kept_and_stale_folders_go(saver: Saver) -> None:
    (saver.run.weights_path / ".tmp-dead").mkdir(parents=True)
    (saver.run.weights_path / ".tmp-dead" / "model.safetensors").write_bytes(b"half")
    for step in (0, 5, 10):
        saver.save(step)
    assert checkpoint_steps(saver.run) == [5, 10]
    assert sorted(path.name for path in saver.run.weights_path.iterdir()) == ["step-000005", "step-000010"]
    assert load_run("one", saver.run.root).step == 10
    assert load_trainer_state(saver.run, 5)[1]["step"] == 5
    with pytest.raises(UsageError, match=r"it has \[5, 10\]"):
        load_trainer_state(saver.run, 0)


def test_saving_a_step_again_replaces_it(saver: Saver) -> None:
    saver.save(5)
    with torch.no_grad():
        saver.model.embedding.weight.fill_(3.0)
    saver.save(5)
    assert [path.name for path in saver.run.weights_path.iterdir()] == ["step-000005.1"]
    assert float(load_run("one", saver.run.root).model.embedding.weight[0, 0]) == 3.0


def test_nothing_is_pickled(saver: Saver) -> None:
    files = list(saver.save(1).iterdir())
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    for path in files:
        assert not path.read_bytes().startswith((b"\x80", b"PK")), "a pickle, or the zip file torch.save writes"


def test_a_pickle_in_place_of_weights_is_refused_unread(saver: Saver, tmp_path: Path) -> None:
    folder = saver.save(1)
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (Path.touch, (canary,))

    torch.save({"x": Payload()}, folder / "model.safetensors")
    _forge_manifest(folder)
    with pytest.raises(RunError, match="not a readable safetensors file"):
        load_run("one", saver.run.root)
    assert not canary.exists()


def test_a_run_without_checkpoint_or_folder_says_so(saver: Saver, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no checkpoint"):
        load_run("one", saver.run.root)
    with pytest.raises(RunError, match="no run 'absent'"):
        load_run("absent", tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "manifest.json"])
def test_flips_cuts_and_losses_are_refused_in_one_line(saver: Saver, name: str) -> None:
    path = saver.save(1) / name
    whole = path.read_bytes()
    generator = random.Random(name)
    damaged = [whole[:cut] for cut in (0, len(whole) // 10, len(whole) // 2, len(whole) - 10)]
    for _ in range(20):
        at, bit = generator.randrange(len(whole)), generator.randrange(8)
        damaged.append(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(RunError, match=name) as caught:
            load_run("one", saver.run.root)
        assert "\n" not in str(caught.value)
        assert "delete" in str(caught.value)
    path.unlink()
    with pytest.raises(RunError, match=name):
        load_run("one", saver.run.root)
    path.write_bytes(whole)
    assert load_run("one", saver.run.root).step == 1


@pytest.mark.parametrize("name", ["trainer.safetensors", "trainer.json"])
def test_a_damaged_trainer_state_is_refused(saver: Saver, name: str) -> None:
    path = saver.save(1) / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(RunError, match=name):
        load_trainer_state(saver.run)


def test_a_config_that_lies_is_refused_before_memory_is_taken(saver: Saver) -> None:
    folder = saver.save(1)
    tree = json.loads((folder / "config.json").read_text())
    # 1.7e15 weights by its own account.
    tree["model"] |= {"dim": 65_536, "expert_hidden_dim": 262_144, "num_experts": 4_096, "num_layers": 8}
    (folder / "config.json").write_text(json.dumps(tree))
    _forge_manifest(folder)
    with pytest.raises(RunError, match=r"does not fit its config\.json"):
        load_run("one", saver.run.root)
    tree["model"]["top_k"] = 9_999
    (folder / "config.json").write_text(json.dumps(tree))
    _forge_manifest(folder)
    with pytest.raises(RunError, match="top_k"):
        load_run("one", saver.run.root)


def test_another_tokenizer_is_refused(saver: Saver) -> None:
    folder = saver.save(1)
    Tokenizer.train(["a"], 257).save(folder / "tokenizer.json")
    _forge_manifest(folder)
    with pytest.raises(RunError, match="tokenizer of 257 entries"):
        load_run("one", saver.run.root)


def test_missing_and_extra_tensors_are_named(saver: Saver) -> None:
    folder = saver.save(1)
    tensors = load_file(folder / "model.safetensors")
    for change in ({"extra.weight": torch.zeros(2)}, {"norm.weight": torch.zeros(7)}):
        save_file({**tensors, **change}, folder / "model.safetensors")
        _forge_manifest(folder)
        with pytest.raises(RunError, match=next(iter(change))):
            load_run("one", saver.run.root)


def test_a_full_disk_leaves_the_old_checkpoint(saver: Saver) -> None:
    saver.save(1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 500, 20_000, 100_000):  # in the first file, in config.json, in the middle of the weights
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(RunError, match="no space left") as caught:
                saver.save(2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "\n" not in str(caught.value)
        assert [path.name for path in saver.run.weights_path.iterdir()] == ["step-000001"]
        assert load_run("one", saver.run.root).step == 1
    saver.save(2)
    assert load_run("one", saver.run.root).step == 2


def test_slimming_halves_the_weights_and_keeps_the_rest(saver: Saver) -> None:
    for step in (1, 2):
        saver.save(step)
    run = saver.run
    run.write_status(RunStatus("finished", step=2, steps=2))
    run.append_metrics({"kind": "train", "step": 2})
    run.probe_path(2).write_bytes(b"probe")
    run.log_path.write_text("a log")
    with pytest.raises(RunError, match="would still take"):
        slim_run(run, max_bytes=1000)
    assert checkpoint_steps(run) == [1, 2]
    assert load_trainer_state(run)[1] == {"step": 2}
    size = slim_run(run, max_bytes=10_000_000)
    assert size == sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())
    assert not run.log_path.exists()
    assert run.probe_steps() == [2]
    assert len(run.metrics()) == 1
    assert checkpoint_steps(run) == [2]
    loaded = load_run("one", run.root)
    assert loaded.step == 2
    assert loaded.model.embedding.weight.dtype == torch.float32
    for name, tensor in saver.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor.to(torch.bfloat16).float())
    with pytest.raises(RunError, match="slimmed"):
        load_trainer_state(run)
    assert slim_run(run, max_bytes=10_000_000) == size  # once more changes nothing
    assert load_run("one", run.root).step == 2


def test_a_read_only_copy_loads(saver: Saver, tmp_path: Path) -> None:
    saver.save(1)
    shutil.copytree(saver.run.path, tmp_path / "copy" / "renamed")
    for path in (tmp_path / "copy").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert load_run("renamed", tmp_path / "copy").step == 1
    for path in (tmp_path / "copy").rglob("*"):
        path.chmod(0o755)


KILL_WHILE_SAVING = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from test_runs_checkpoint import Saver
from moe_core.runs.checkpoint import load_run, load_trainer_state

root, seed, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
saver = Saver(root)
saver.run.create(saver.config)
began = time.perf_counter()
saver.save(1)
seconds = time.perf_counter() - began
delays = random.Random(seed)
step, mid_save = 1, 0
for number in range(100):
    if number >= rounds and mid_save >= 3:  # how many kills hit a save depends on the machine
        break
    child = os.fork()
    if child == 0:
        with saver.run.lock():
            for number in range(step + 1, step + 1000):
                saver.save(number)
        os._exit(0)
    time.sleep(delays.uniform(0.0, 3 * seconds))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not saver.run.is_locked(), "the lock outlived its process"
    mid_save += any(saver.run.weights_path.glob(".tmp-*"))
    loaded = load_run("one", root)
    assert load_trainer_state(saver.run)[1] == {"step": loaded.step}
    assert loaded.step >= step
    step = loaded.step
saver.save(step + 1)
assert not list(saver.run.weights_path.glob(".tmp-*"))
print(mid_save)
"""


def test_a_kill_while_saving_always_leaves_a_checkpoint(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KILL_WHILE_SAVING, str(tmp_path), "0", "12"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3, "most kills should have hit a save"


def _forge_manifest(folder: Path) -> None:
    """Make the hashes fit again, as someone would who forges a checkpoint on purpose."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        entry |= {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True))


def test_find_checkpoint_prefers_the_newest(saver: Saver) -> None:
    saver.save(999)
    saver.save(1_000_000)
    assert find_checkpoint(saver.run).name == "step-1000000"
