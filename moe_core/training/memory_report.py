"""What a training holds in memory, step by step, and how much of it is what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from moe_core.model.size import TrainingMemory, training_memory
from moe_core.training.memory_now import MemoryNow, memory_now
from moe_core.training.shared_weights import local_part
from moe_core.training.trainer import Trainer


@dataclass(frozen=True)
class MemoryParts:
    """Bytes of one step in this process, by what they are for. They do not all exist at once."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    """What forward passes keep for their backward passes, at the worst moment, without parameters."""


class MemoryReport:
    """Takes the steps of a training, as Trainer.step does, and says what memory they take: give it to loop.train."""

    def __init__(
        self, interval: int, say: Callable[[int, MemoryNow], None], step: Callable[[Trainer], object] = Trainer.step
    ) -> None:
        self._interval, self._say, self._step = interval, say, step
        self.parts: MemoryParts | None = None
        """Of the first step."""
        self.estimate: TrainingMemory | None = None
        """What was expected of it; None where other processes hold parts of it."""
        self.last: MemoryNow | None = None

    def __call__(self, trainer: Trainer) -> None:
        """One step."""
        if self.parts is None:
            self.parts = self._measured_step(trainer)
            state = trainer.state
            if trainer.ranks.size == 1:
                self.estimate = training_memory(trainer.config, autocast=state.autocast, parts=state.parts)
        else:
            self._step(trainer)
        self.last = memory_now(trainer.device)
        if trainer.state.step % self._interval == 0:
            self._say(trainer.state.step, self.last)

    def _measured_step(self, trainer: Trainer) -> MemoryParts:
        parameters = list(trainer.model.parameters())
        kept = _KeptTensors({_storage(one).data_ptr() for one in parameters})
        gradients: list[int] = []
        hook = trainer.optimizers[0].register_step_pre_hook(
            lambda *_: gradients.append(_bytes_of(one.grad for one in parameters if one.grad is not None))
        )
        with saved_tensors_hooks(kept.keep, _KeptTensor.tensor):
            self._step(trainer)
        hook.remove()
        states = [tensor for one in trainer.optimizers for state in one.state.values() for tensor in state.values()]
        return MemoryParts(
            parameters=_bytes_of(parameters),
            gradients=max(gradients, default=0),
            optimizer=_bytes_of(states),
            activations=kept.peak,
        )


class _KeptTensors:
    """Counts the bytes of storages that a backward pass will need, each once however many tensors look at it."""

    def __init__(self, apart: set[int]) -> None:
        self._apart = apart
        self._users: Counter[int] = Counter()
        self._bytes = 0
        self.peak = 0

    def keep(self, tensor: Tensor) -> _KeptTensor:
        storage = _storage(tensor)
        place, size = storage.data_ptr(), storage.nbytes()
        if place in self._apart:
            return _KeptTensor(tensor.detach(), self, place, 0)
        if not self._users[place]:
            self._bytes += size
            self.peak = max(self.peak, self._bytes)
        self._users[place] += 1
        return _KeptTensor(tensor.detach(), self, place, size)

    def release(self, place: int, size: int) -> None:
        if place not in self._apart:
            self._users[place] -= 1
            if not self._users[place]:
                self._bytes -= size


class _KeptTensor:
    """What autograd keeps in place of a tensor; it is let go of when its backward pass is done."""

    def __init__(self, tensor: Tensor, counted: _KeptTensors, place: int, size: int) -> None:
        self._tensor, self._counted, self._place, self._size = tensor, counted, place, size

    def tensor(self) -> Tensor:
        return self._tensor

    def __del__(self) -> None:
        self._counted.release(self._place, self._size)


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return local_part(tensor).untyped_storage()


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(local_part(tensor).nbytes for tensor in tensors)
