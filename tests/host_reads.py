"""Sees, on a processor alone, where the host would wait for an accelerator."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Read a value on the host, or need one to know the size of what they return.
WAITING = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "bincount", "masked_select", "_unique2",
    "unique_dim", "unique_consecutive", "histc", "histogram",
}  # fmt: skip
WITH_MASKS = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
"""Wait for the number of True, if they are given a mask."""
READING = {Tensor.tolist, Tensor.item, Tensor.numpy, Tensor.cpu, Tensor.__bool__, Tensor.__float__, Tensor.__int__}
"""Some of these read memory without an operation."""


class HostReads:
    """Within it, `waits` gets the name of everything that would make the host wait, `operations` of everything, and
    `copies` counts the tensors that are made of the host's values."""

    def __init__(self) -> None:
        self.waits: list[str] = []
        self.copies = 0
        self.operations: set[str] = set()
        self._modes = (_Operations(self), _Functions(self))

    def __enter__(self) -> HostReads:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, trace)


class _Operations(TorchDispatchMode):
    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self._reads.operations.add(name)
        masked = name in WITH_MASKS and any(one is not None and one.dtype == torch.bool for one in args[1])
        counted = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        self._reads.copies += name == "lift_fresh"
        if name in WAITING or masked or counted:
            self._reads.waits.append(name)
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        if func in READING:
            self._reads.waits.append(func.__name__)
        return func(*args, **(kwargs or {}))
