"""What the processes of torch.distributed do together while a training is watched; a single one is a group too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import distributed

from moe_core.errors import MoescopeError, UsageError
from moe_core.routing.trace.types import Float64Array


class Ranks:
    """The processes of a group, None = all. Every method must be called by each of them, in the same order."""

    def __init__(self, group: Any = None) -> None:
        self._group = group
        self.are_several = distributed.is_available() and distributed.is_initialized()
        self.size: int = distributed.get_world_size(group) if self.are_several else 1
        self.is_first = not self.are_several or distributed.get_rank(group) == 0

    def add_up(self, values: Float64Array) -> Float64Array:
        """The sums over all processes, to each of them. Whole numbers stay exact up to 2**53."""
        if not self.are_several:
            return values
        backend = str(distributed.get_backend(self._group))
        device = "cpu" if "gloo" in backend or "mpi" in backend else torch.device("cuda", torch.cuda.current_device())
        tensor = torch.from_numpy(values.copy()).to(device)
        distributed.all_reduce(tensor, group=self._group)
        summed: Float64Array = tensor.cpu().numpy()
        return summed

    def of_first(self, value: float) -> float:
        """The value that the first process gave."""
        return float(self.add_up(np.array([value if self.is_first else 0.0]))[0])

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is done inside is done by all or by none: where it fails in one process, it raises in each."""
        error: MoescopeError | None = None
        try:
            yield
        except MoescopeError as found:
            error = found
        failed = self.add_up(np.array([float(error is not None)]))[0]
        if error is not None:
            raise error
        if failed:
            raise UsageError("another process of this training could not begin to watch; its message says why")
