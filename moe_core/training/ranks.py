"""What the processes of torch.distributed do together in a training, ours or a watched one; a single one is a group
too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import distributed

from moe_core.errors import MoescopeError, RunError, UsageError
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
        return float(self.add_up(np.array([float(value) if self.is_first else 0.0]))[0])

    def any_of(self, value: bool) -> bool:
        """Whether it is true in any process; each of them learns it."""
        return bool(self.add_up(np.array([float(value)]))[0]) if self.are_several else value

    def check_equal(self, digest: str, what: str) -> None:
        """Raise RunError in each process unless all have the same `digest`, in hexadecimal, of `what`."""
        mine = float(int(digest[:12], 16))  # whole numbers below 2**53 are exact
        if self.any_of(mine != self.of_first(mine)):
            raise RunError(f"the processes of this training differ in {what}; give all of them the same")

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
            raise UsageError("another process of this training could not begin; its message says why")
