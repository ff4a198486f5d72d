"""How many threads of the processor read one pass of a model."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext

import torch
from threadpoolctl import ThreadpoolController

from moe_core.inference.protocol import LanguageModel

SMALL_MODEL = 16_000_000
"""Weights that a token passes. What reads more is bound by memory, of which two threads read more than one."""
SMALL_PASS = 64_000_000
"""Weights passed, over all tokens of a pass. Up to here a second thread saves a fifth of a pass at most on a quiet
processor. Beside one busy program on two cores, or beside the clients of a server, it makes the pass take up to twice
as long (docs/LOG.md, 2026-11-28)."""


def threads_for(model: LanguageModel, tokens: int) -> AbstractContextManager[object]:
    """What a pass of that many tokens is to be computed under, in the thread that enters it: a small one on a processor
    takes one thread, so that it waits for no other; any other what torch takes. Other threads keep what they have."""
    weights = model.active_parameters
    if model.device.type != "cpu" or weights > SMALL_MODEL or weights * tokens > SMALL_PASS:
        return nullcontext()
    # Torch settles how many threads it takes when a thread first computes; that must not undo what follows.
    torch.get_num_threads()
    limited: AbstractContextManager[object] = _openmp().limit(limits=1)
    return limited


@functools.cache
def _openmp() -> ThreadpoolController:
    """What divides the work of torch, MKL included; its number of threads is set for each calling thread alone."""
    return ThreadpoolController().select(user_api="openmp")
