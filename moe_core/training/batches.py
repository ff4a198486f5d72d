"""The batches of a training, as tensors where the model is; an accelerator finds each prepared when it needs it."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_core.config import TrainingConfig
from moe_core.data.token_stream import TokenBatch, TokenStream, training_batch
from moe_core.training.phases import phase


class TensorBatch(NamedTuple):
    """B sequences of S tokens and what follows each of them, both int64 [B, S]."""

    token_ids: Tensor
    targets: Tensor

    def split(self, parts: int) -> list[TensorBatch]:
        """Its sequences in `parts` equal batches, in order; `parts` must divide B."""
        return [TensorBatch(*part) for part in zip(*(column.tensor_split(parts) for column in self), strict=True)]


def tensor_batch(batch: TokenBatch, device: torch.device) -> TensorBatch:
    """The columns that a step reads, on `device`. On CUDA they may arrive later: whatever is asked of them waits there,
    not here."""
    return TensorBatch(_on_device(batch.token_ids, device), _on_device(batch.targets, device))


def _on_device(values: NDArray[np.int64], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(values)
    # Only memory that the system cannot move can be copied while the host goes on.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Batches:
    """The batch of every step; which one is a pure function of the step, so that resuming is exact, and so are threads
    that read ahead (training.data_workers)."""

    def __init__(self, text: TokenStream, training: TrainingConfig, device: torch.device) -> None:
        self._text, self._training, self._device = text, training, device
        self._ahead: tuple[int, TensorBatch] | None = None
        self._threads = ThreadPoolExecutor(training.data_workers) if training.data_workers else None
        self._coming: dict[int, Future[TokenBatch]] = {}

    def of(self, step: int) -> TensorBatch:
        """The batch of `step`, counted from 0. Raises DataError for a text smaller than one sequence."""
        if self._ahead is not None and self._ahead[0] == step:
            return self._ahead[1]
        with phase("data"):
            return tensor_batch(self._read(step) if self._threads is None else self._read_ahead(step), self._device)

    def prepare(self, step: int) -> None:
        """Have the batch of `step` ready: called while the device works and the host has nothing else to do."""
        self._ahead = step, self.of(step)

    def _read(self, step: int) -> TokenBatch:
        training = self._training
        return training_batch(
            self._text, step, batch_size=training.batch_size, seq_len=training.seq_len, seed=training.seed
        )

    def _read_ahead(self, step: int) -> TokenBatch:
        """What a thread has read, or is reading, of this step; those that follow are begun."""
        assert self._threads is not None
        for coming in range(step, step + 1 + self._training.data_workers):
            if coming not in self._coming:
                self._coming[coming] = self._threads.submit(self._read, coming)
        return self._coming.pop(step).result()
