"""Checkpoints: safetensors and JSON with a hash manifest, never pickle.

    checkpoints/<run>/weights/step-000123/
      model.safetensors     MoETransformer.state_dict(); the head is the embedding, so it is there once
      config.json           the configuration (with the vocabulary size the tokenizer really has)
      tokenizer.json
      trainer.safetensors   optimizer and RNG tensors   } absent in a slimmed run
      trainer.json          the trainer's plain values  }
      manifest.json         SHA-256 and size of each of the above

A checkpoint is written to a temporary folder, synced, and renamed: it is there completely or not at all. A second
version of the same step (a slimmed one) is step-000123.1, and so on; the highest counts.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe_core.config import Config, validate_config
from moe_core.errors import MoescopeError, RunError, UsageError
from moe_core.files import remove_stale
from moe_core.runs.files import check_ordinary, read_file, read_json_object, remove_folder, replace_folder, sha256_of
from moe_core.runs.folder import RunFolder

if TYPE_CHECKING:
    from moe_core.data.tokenizer import Tokenizer
    from moe_core.model.transformer import MoETransformer

CHECKPOINTS_KEPT = 2
MODEL_FILES = ("model.safetensors", "config.json", "tokenizer.json")
BEST: Literal["best"] = "best"
Step = int | Literal["best"]
"""A checkpoint of a run: the step at which it was saved, or of those there are the one with the lowest loss on
validation."""
TRAINER_FILES = ("trainer.safetensors", "trainer.json")
_FOLDER = re.compile(r"step-(\d{6,12})(?:\.(\d{1,6}))?")


@dataclass(frozen=True)
class LoadedRun:
    """A checkpoint in memory; the model is in eval mode and may be shared between threads that only read."""

    run: RunFolder
    config: Config
    model: MoETransformer
    tokenizer: Tokenizer
    step: int


def save_checkpoint(
    run: RunFolder,
    *,
    step: int,
    model: torch.nn.Module,
    tokenizer: Tokenizer,
    config: Config,
    trainer_state: Mapping[str, Tensor] | None,
    trainer_meta: Mapping[str, Any] | None,
    keep_step: int | None = None,
) -> Path:
    """Save one checkpoint and drop all but the newest two steps and `keep_step`. The caller holds the run's lock.

    A kill at any moment leaves the previous checkpoint, the new one or both. Raises RunError when the disk is full;
    the previous checkpoint is then intact and nothing half-written is left.
    """
    with run.in_place():
        remove_stale(run.weights_path)
        target = _next_version(run, step)
        with replace_folder(target) as folder:
            _save_tensors(model.state_dict(), folder / "model.safetensors")
            (folder / "config.json").write_text(config.model_dump_json(indent=2), encoding="utf-8")
            tokenizer.save(folder / "tokenizer.json")
            if trainer_state is not None:
                _save_tensors(trainer_state, folder / "trainer.safetensors")
                (folder / "trainer.json").write_text(json.dumps(trainer_meta or {}), encoding="utf-8")
            _write_manifest(folder, step)
        for superseded in _superseded(run, keep_step):
            remove_folder(superseded)
    return target


def checkpoint_steps(run: RunFolder) -> list[int]:
    """Steps of the run's checkpoints, ascending."""
    return sorted({step for step, _, _ in _versions(run)})


def load_run(
    name: str,
    root: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    step: Step | None = None,
) -> LoadedRun:
    """Load the newest checkpoint of a run, or that of `step`; weights in `dtype` (None = float32), routers' buffers
    in float32.

    Every file's hash is verified, and every tensor's shape compared with the configuration, before memory is taken.
    Raises RunError naming the damaged file and what to do.
    """
    run = RunFolder(name, root)
    folder = find_checkpoint(run, step)
    try:
        return _load(run, folder, device, dtype or torch.float32)
    except RunError:
        # A trainer saves while we read: it may have dropped this checkpoint in favour of a newer one.
        if folder.exists():
            raise
    return _load(run, find_checkpoint(run, step), device, dtype or torch.float32)


def load_trainer_state(run: RunFolder, step: int | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The trainer's tensors and plain values of the newest checkpoint, or that of `step`; hashes verified."""
    folder = find_checkpoint(run, step)
    verify_checkpoint(folder)
    if not (folder / "trainer.json").exists():
        raise RunError(
            f"run {run.name!r} was slimmed: its optimizer state is gone and it cannot be continued; "
            "train a new run under another --run NAME"
        )
    return _read_tensors(folder / "trainer.safetensors"), read_json_object(folder / "trainer.json")


def find_checkpoint(run: RunFolder, step: Step | None = None) -> Path:
    """The folder of the newest checkpoint, or of `step`. Raises RunError when there is none, UsageError when there are
    others."""
    versions = _versions(run)
    if not versions:
        if not run.path.is_dir() or run.is_watched():
            run.config()  # raises "no run ...", or that its model is elsewhere
        raise RunError(
            f"run {run.name!r} has no checkpoint in {str(run.weights_path)!r} yet; "
            "wait for its first evaluation, or train it again"
        )
    if step is None:
        return versions[-1][2]
    wanted = _best_step(run) if step == BEST else step
    for found, _, path in reversed(versions):
        if found == wanted:
            return path
    raise UsageError(f"run {run.name!r} has no checkpoint of step {step}; it has {checkpoint_steps(run)}")


def _best_step(run: RunFolder) -> int | None:
    """Of the steps that have checkpoints, the one whose loss on validation was lowest; None = none was scored."""
    there = checkpoint_steps(run)
    scores = {
        record["step"]: record["nats_per_token"]
        for record in run.metric_records("evaluation")
        if record["split"] == "validation" and record["step"] in there and record["nats_per_token"] is not None
    }
    return min(scores, key=scores.__getitem__, default=None)


def verify_checkpoint(folder: Path) -> None:
    """Raise RunError, naming the file and the remedy, unless every file is as it was written."""
    remedy = f"restore it from a copy, or delete {str(folder)!r} to fall back on an older checkpoint"
    try:
        raw = read_file(folder / "manifest.json")
        manifest = json.loads(raw)
        step, files = manifest["step"], manifest["files"]
        canonical = _manifest_bytes(step, files) == raw
        names = set(files)
        expected = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (RunError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise RunError(f"manifest.json in {str(folder)!r} is missing or damaged; {remedy}") from None
    match = _FOLDER.fullmatch(folder.name)
    known = names in ({*MODEL_FILES}, {*MODEL_FILES, *TRAINER_FILES})
    if not canonical or not known or match is None or step != int(match.group(1)):
        raise RunError(f"manifest.json in {str(folder)!r} is damaged or of another version; {remedy}")
    for name, (size, digest) in expected.items():
        path = folder / name
        check_ordinary(path)
        try:
            actual = path.stat().st_size
            if actual != size:
                raise RunError(f"{str(path)!r} has {actual} bytes, but {size} in manifest.json; {remedy}")
            if sha256_of(path) != digest:
                raise RunError(f"{str(path)!r} is damaged: its SHA-256 is not that of manifest.json; {remedy}")
        except OSError as error:
            raise RunError(f"{str(path)!r} cannot be read ({error.strerror or error}); {remedy}") from None


def slim_run(run: RunFolder, *, max_bytes: int) -> int:
    """Make a run small enough to ship: newest checkpoint's weights in bfloat16, no trainer state, no older checkpoint,
    no log. What routers keep beside weights stays float32.

    Metrics, probes, held-out documents and status stay. Returns the run folder's size in bytes. Raises RunError,
    leaving the run as it was, when that would be more than `max_bytes`.
    """
    from moe_core.model.outline import outline

    with run.lock():
        source = find_checkpoint(run)
        verify_checkpoint(source)
        step, version, _ = _versions(run)[-1]
        buffers = dict(outline(_checkpoint_config(source).model).named_buffers())
        tensors = {
            name: tensor.to(_stored_dtype(tensor, torch.bfloat16, is_buffer=name in buffers))
            for name, tensor in _read_tensors(source / "model.safetensors").items()
        }
        target = run.weights_path / f"step-{step:06d}.{version + 1}"
        with replace_folder(target) as folder:
            _save_tensors(tensors, folder / "model.safetensors")
            for name in ("config.json", "tokenizer.json"):
                shutil.copyfile(source / name, folder / name)
            _write_manifest(folder, step)
        kept = [
            path for path in run.path.iterdir() if path.name not in ("weights", "train.log", "trainer.lock", "stop")
        ]
        size = sum(_size(path) for path in [*kept, target])
        if size > max_bytes:
            remove_folder(target)
            raise RunError(
                f"run {run.name!r} would still take {size:,} bytes, more than {max_bytes:,}; "
                "train a smaller model or keep fewer probes"
            )
        for _, _, path in _versions(run):
            if path != target:
                remove_folder(path)
        run.log_path.unlink(missing_ok=True)
        run.clear_stop()
        return size


def _load(run: RunFolder, folder: Path, device: str | torch.device, dtype: torch.dtype) -> LoadedRun:
    from moe_core.data.tokenizer import Tokenizer
    from moe_core.model.outline import outline

    verify_checkpoint(folder)
    config = _checkpoint_config(folder)
    try:
        tokenizer = Tokenizer.load(folder / "tokenizer.json")
    except MoescopeError as error:
        raise RunError(f"checkpoint {str(folder)!r} is damaged: {error}") from None
    if tokenizer.vocab_size != config.model.vocab_size:
        raise RunError(
            f"checkpoint {str(folder)!r} has a tokenizer of {tokenizer.vocab_size} entries but a model of "
            f"{config.model.vocab_size}; they do not belong together, restore the folder from a copy"
        )
    model = outline(config.model)
    path = folder / "model.safetensors"
    _compare_shapes(path, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    # A copy: safetensors hands out views of the mapped file, which a trainer may remove.
    buffers = dict(model.named_buffers())
    tensors = {
        name: tensor.to(device, _stored_dtype(tensor, dtype, is_buffer=name in buffers), copy=True)
        for name, tensor in _read_tensors(path).items()
    }
    model.load_state_dict(tensors, assign=True)
    model.eval().requires_grad_(False)
    match = _FOLDER.fullmatch(folder.name)
    assert match is not None  # verify_checkpoint compared it
    return LoadedRun(run, config, model, tokenizer, int(match.group(1)))


def _checkpoint_config(folder: Path) -> Config:
    try:
        return validate_config(read_json_object(folder / "config.json"))
    except MoescopeError as error:
        raise RunError(f"checkpoint {str(folder)!r} is damaged: {error}") from None


def _stored_dtype(tensor: Tensor, dtype: torch.dtype, *, is_buffer: bool) -> torch.dtype:
    """Weights are wanted in `dtype`; a router's buffer decides about choices and is never rounded."""
    if not tensor.is_floating_point():
        return tensor.dtype
    return torch.float32 if is_buffer else dtype


def _compare_shapes(path: Path, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise RunError unless the file's header lists exactly `expected`. Reads no tensor data."""
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise RunError(f"{str(path)!r} is not a readable safetensors file: {_one_line(error)}") from None
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise RunError(
                f"{str(path)!r} does not fit its config.json: tensor {name!r} is {found.get(name, 'missing')}, "
                f"expected {expected.get(name, 'none')}; restore the checkpoint from a copy"
            )


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, path)
    except SafetensorError as error:  # the Rust side reports the operating system's refusal as text
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number.group(1)) if number else 0, _one_line(error)) from None


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise RunError(f"{str(path)!r} is not a readable safetensors file: {_one_line(error)}") from None


def _write_manifest(folder: Path, step: int) -> None:
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(folder.iterdir())}
    (folder / "manifest.json").write_bytes(_manifest_bytes(step, files))


def _manifest_bytes(step: int, files: Mapping[str, Any]) -> bytes:
    """The one spelling of a manifest, so that any flipped byte in it shows."""
    return json.dumps({"format": 1, "step": step, "files": files}, indent=2, sort_keys=True).encode()


def _versions(run: RunFolder) -> list[tuple[int, int, Path]]:
    """(step, version, folder) of each checkpoint, the one that counts last."""
    if not run.weights_path.is_dir():
        return []
    found = ((_FOLDER.fullmatch(path.name), path) for path in run.weights_path.iterdir())
    return sorted((int(match.group(1)), int(match.group(2) or 0), path) for match, path in found if match)


def _next_version(run: RunFolder, step: int) -> Path:
    versions = [version for found, version, _ in _versions(run) if found == step]
    return run.weights_path / (f"step-{step:06d}" + (f".{max(versions) + 1}" if versions else ""))


def _superseded(run: RunFolder, keep_step: int | None) -> list[Path]:
    """Folders that are neither the highest version of their step nor of the newest steps or `keep_step`."""
    highest = {step: path for step, _, path in _versions(run)}
    kept = {highest[step] for step in highest if step in sorted(highest)[-CHECKPOINTS_KEPT:] or step == keep_step}
    return [path for _, _, path in _versions(run) if path not in kept]


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
