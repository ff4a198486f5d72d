"""Tensors on their way to the host: an accelerator is not waited for until somebody needs them.

Each `.cpu()` waits until the device has done all that it was asked for. Here all copies are asked for at once, into
memory that the device can write by itself, and waited for once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

if TYPE_CHECKING:
    import torch


class HostCopies:
    """Copies that are under way, to be waited for in any thread. Tensors of the host are taken as they are."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        """Start to copy."""
        import torch

        self._tensors: list[torch.Tensor] = []
        self._copied: list[Any] = []
        """An event for each CUDA device: what was to be copied from it is there."""
        for tensor in tensors:
            if tensor.is_cuda:
                held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                self._tensors.append(held.copy_(tensor, non_blocking=True))
            else:
                self._tensors.append(tensor.cpu())
        for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
            self._copied.append(torch.cuda.current_stream(device).record_event())

    def tensors(self) -> list[torch.Tensor]:
        """Wait for the tensors, in their order."""
        for event in self._copied:
            event.synchronize()
        return self._tensors

    def arrays(self) -> list[npt.NDArray[Any]]:
        """The same for numpy, of types that it has."""
        return [tensor.numpy() for tensor in self.tensors()]
