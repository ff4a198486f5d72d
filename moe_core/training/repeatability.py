"""How precisely a training computes, in which order it adds up, and what it does with freed memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch.utils import deterministic

from moe_core.config import Config
from moe_core.errors import UsageError

AUTOCAST_MIN_DIM = 192
"""Width from which a training step gains by bfloat16 on a processor that multiplies it: .93 to 1.05 times as fast at 64
and 128, 1.25 to 1.7 at 192 to 768 (docs/results.md, bench --only precision; avx512_bf16). AMX multiplies faster still,
but was not at hand."""
AUTOCAST_MIN_DIM_CUDA = 256
"""Not measured between this and narrower ones."""
BFLOAT16_UNITS = ("avx512_bf16", "amx_bf16")
"""Instructions that multiply bfloat16, in the words of torch.cpu.get_capabilities. ARM's are not among them: nothing
was measured there, and float32 is right everywhere."""
# glibc's names and numbers (malloc.h); 2**25 is the largest mmap threshold it takes on 64-bit machines.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def resolve_autocast(config: Config, device: torch.device) -> bool:
    """True = autocast to autocast_dtype. "auto" asks for hardware that multiplies bfloat16 and a model wide enough to
    gain. Raises UsageError for float16 where it was not tried.

    Training alone: decoding is slower in bfloat16 at every width measured, and reading in it changes what routers
    choose, so traces and scores ask for it by --dtype.
    """
    if config.training.autocast == "float16" and device.type not in ("cpu", "cuda"):
        raise UsageError(
            f"training.autocast = float16 was not tried on {device.type}; expected bfloat16 or none there, or "
            "training.device = cuda or cpu"
        )
    if config.training.autocast != "auto":
        return config.training.autocast != "none"
    if device.type == "cuda":
        wide = config.model.dim >= AUTOCAST_MIN_DIM_CUDA
        return wide and bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and gains_by_bfloat16(config.model.dim, torch.cpu.get_capabilities())


def autocast_dtype(config: Config) -> torch.dtype:
    """What a training that autocasts computes in."""
    return torch.float16 if config.training.autocast == "float16" else torch.bfloat16


def gains_by_bfloat16(dim: int, features: Mapping[str, object]) -> bool:
    """Whether a training step of a model this wide is faster on a processor with these features."""
    return dim >= AUTOCAST_MIN_DIM and any(bool(features.get(unit)) for unit in BFLOAT16_UNITS)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of giving it back after every step and asking for it again.

    A step allocates the same megabytes as the last one: the page faults saved were worth 15 % of the time in the one
    pair measured (docs/LOG.md). Concerns the whole process, for good; so it is the command line that calls it.
    Elsewhere than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((M_MMAP_THRESHOLD, 2**25), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26)):
            mallopt(option, value)


@contextmanager
def repeatable(threads: int, device: torch.device) -> Iterator[None]:
    """Let sums be taken in one order, so that a run repeats to the bit; `threads` CPU threads (0 = torch's own choice).

    Both are settings of the whole process; they are put back at the end. Seeds and RNG are the caller's.
    """
    threads_before = torch.get_num_threads()
    deterministic_before = torch.get_deterministic_debug_mode()
    fill_before = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if threads:
        torch.set_num_threads(threads)
    # Without it, gradients of gathered rows are added by several threads as they come. Accelerators lack
    # some of these kernels and would refuse; a run there repeats up to rounding. use_deterministic_algorithms does the
    # same, but loads torch's compiler first, seconds of a short run.
    torch.set_deterministic_debug_mode("error" if device.type == "cpu" else "default")
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        torch.set_deterministic_debug_mode(deterministic_before)
        deterministic.fill_uninitialized_memory = fill_before  # type: ignore[attr-defined]
