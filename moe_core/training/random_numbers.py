"""The state of torch's random numbers in a checkpoint: one for each process that sees rows of its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def random_state(device: torch.device, row: int = 0) -> dict[str, Tensor]:
    """Of this process, which sees the `row`-th part of a batch."""
    names = _names(row)
    state = {names["cpu"]: torch.get_rng_state()}
    if device.type == "cuda":
        state[names["cuda"]] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(tensors: Mapping[str, Tensor], device: torch.device, row: int = 0) -> None:
    """Undo `random_state`; where a checkpoint has none of this row, what was seeded stays."""
    names = _names(row)
    if names["cpu"] in tensors:
        torch.set_rng_state(tensors[names["cpu"]])
    if device.type == "cuda" and names["cuda"] in tensors:
        torch.cuda.set_rng_state(tensors[names["cuda"]], device)


def _names(row: int) -> dict[str, str]:
    return {kind: f"rng.{kind}.{row}" if row else f"rng.{kind}" for kind in ("cpu", "cuda")}
