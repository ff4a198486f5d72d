"""How many sequences of a batch pass at a time: as many as fit into memory, and fewer once it ends within a step."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from moe_core.config import Config
from moe_core.errors import RunError
from moe_core.model.size import memory_present, training_memory
from moe_core.training.memory_now import memory_now

Result = TypeVar("Result")
_MEMORY = Path("/proc/meminfo")
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc")
"""What torch's allocators, and libraries that have memory of their own, say in a RuntimeError."""


def first_parts(config: Config, device: torch.device, *, autocast: bool) -> int:
    """In how many parts a batch passes at first: training.gradient_accumulation, or with micro_batch = auto the fewest
    of at least so many whose estimate fits into the memory that is free; one sequence at a time if none does.

    Called when the weights are there.
    """
    training = config.training
    parts = training.gradient_accumulation
    if training.micro_batch == "fixed":
        return parts
    free = memory_free(device)
    while (more := next_parts(parts, training.batch_size)) is not None:
        need = training_memory(config, autocast=autocast, parts=parts)
        if need.total - need.gradients <= free:  # the weights, as large as the gradients, are there
            break
        parts = more
    return parts


def next_parts(parts: int, batch_size: int) -> int | None:
    """Twice as many parts, or the next number that splits the batch evenly; None = it passes in single sequences."""
    return next((more for more in range(2 * parts, batch_size + 1) if batch_size % more == 0), None)


def in_parts_that_fit(
    compute: Callable[[int], Result],
    model: nn.Module,
    *,
    parts: int,
    batch_size: int,
    smaller: Callable[[int], None],
    alone: bool = True,
) -> Result:
    """`compute(parts)`, the gradient of a step; where memory ends, again from the start in smaller parts.

    Gradients and random numbers are put back before, so that the step is the one of a run that had so many parts all
    along. `smaller` is told the new number of parts. `alone`: False for one of several processes, which wait for each
    other within a step: one that begins anew would never meet them again. Raises RunError there, and where one sequence
    does not fit.
    """
    device = next(model.parameters()).device
    while True:
        numbers = _random_state(device)
        try:
            return compute(parts)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if not alone:
                raise RunError(
                    "memory ended in one of several processes, so all of them end; what was saved is intact: resume "
                    "with more processes that share weights (--parallel.shard, --parallel.expert), or with "
                    "--training.activation_checkpointing true"
                ) from None
        # Here the traceback, which held all that the step had made, is gone.
        model.zero_grad(set_to_none=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        _set_random_state(numbers, device)
        more = next_parts(parts, batch_size)
        if more is None:
            raise RunError(
                "memory ended though one sequence passes at a time; what was saved is intact: resume with "
                "--training.activation_checkpointing true, or start a new run with a lower training.seq_len, model.dim "
                "or model.num_experts"
            )
        parts = more
        smaller(parts)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory ended, on whatever device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error) for words in OUT_OF_MEMORY)


def memory_free(device: torch.device) -> int:
    """Bytes that a training may still take: the GPU's, or the machine's or container's as far as it says so."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    present = memory_present()
    if not _MEMORY.exists():
        return present
    lines = dict(line.split(":", 1) for line in _MEMORY.read_text().splitlines())
    # A container has no such line of its own, but this process is most of what is in it.
    return min(1024 * int(lines["MemAvailable"].split()[0]), present - memory_now(device).now)


def _random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(numbers: tuple[torch.Tensor, torch.Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(numbers[0])
    if numbers[1] is not None:
        torch.cuda.set_rng_state(numbers[1], device)
