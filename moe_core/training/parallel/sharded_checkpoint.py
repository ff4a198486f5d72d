"""Checkpoints that every process of a training writes its own part of (torch's DCP), while the training goes on.

    checkpoints/<run>/sharded/step-000123/
      __<rank>_<n>.distcp, .metadata    as torch.distributed.checkpoint writes them
      trainer.json                      the trainer's plain values; written last

They lie between two ordinary checkpoints and are removed with the next one. A folder that is not complete is named
step-000123.part. NOTE: .metadata is a pickle: a run that comes from elsewhere should come without this folder.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.optim import Optimizer

from moe_core.runs.files import read_json_object, remove_folder, translate_os_errors
from moe_core.runs.folder import RunFolder
from moe_core.runs.sharded import SHARDED
from moe_core.training.optimizers import restore_optimizers


class ShardedSaves:
    """The checkpoints of one training; every process makes one, at the same time, and calls it at the same steps."""

    def __init__(self, run: RunFolder, interval: int) -> None:
        self._run, self._interval = run, interval
        self._group: Any = distributed.new_group(backend="gloo")  # beside the sums of a running step
        self._is_first = distributed.get_rank() == 0
        self._writing: tuple[Future[Any], int, dict[str, Any]] | None = None

    def is_due(self, step: int) -> bool:
        """Whether the state right behind this step is to be saved; what was begun before may become complete here."""
        if self._writing is not None and self._writing[0].done() and self._is_first:
            self._complete()
        return step % self._interval == 0

    def begin(self, step: int, tensors: Mapping[str, Tensor], meta: dict[str, Any]) -> None:
        """Begin to write; what was begun before is finished first. `tensors` are copied at once, so that the training
        may change them."""
        self.finish()
        part = self._run.path / SHARDED / f"step-{step:06d}.part"
        if self._is_first:
            remove_folder(part)
        future = async_save(dict(tensors), checkpoint_id=part, process_group=self._group)
        self._writing = cast("Future[Any]", future), step, meta

    def finish(self) -> None:
        """Wait for what is being written."""
        if self._writing is not None:
            self._writing[0].result()
            if self._is_first:
                self._complete()
            self._writing = None

    def _complete(self) -> None:
        assert self._writing is not None
        future, step, meta = self._writing
        future.result()
        folder = self._run.path / SHARDED
        part, done = folder / f"step-{step:06d}.part", folder / f"step-{step:06d}"
        with translate_os_errors(done):
            (part / "trainer.json").write_text(json.dumps(meta), encoding="utf-8")
            remove_folder(done)
            part.rename(done)
        for other in folder.iterdir():
            if other != done:
                remove_folder(other)
        self._writing = None


def load_sharded(
    folder: Path, model: nn.Module, optimizers: list[Optimizer]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Fill model and optimizers, in whatever layout they are; returns the other tensors and the plain values."""
    parameters = dict(model.named_parameters())
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    others: dict[str, Tensor] = {}
    for name, stored in FileSystemReader(folder).read_metadata().state_dict_metadata.items():
        if name not in weights:
            assert isinstance(stored, TensorStorageMetadata)
            parameter = parameters.get(name.removeprefix("optimizer.").rpartition(".")[0])
            like = parameter is not None and parameter.shape == stored.size
            others[name] = (
                torch.zeros_like(parameter.detach())
                if like and parameter is not None
                else torch.empty(stored.size, dtype=stored.properties.dtype)
            )
    several = distributed.is_initialized() and distributed.get_world_size() > 1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # meant, in one process
        load({**weights, **others}, checkpoint_id=folder, no_dist=not several)
    restore_optimizers(model, optimizers, others)
    return others, read_json_object(folder / "trainer.json")
