"""torch.compile of a model's blocks while it trains, where it pays back.

Blocks, not the model: they are alike, so that one is compiled for all, and sizes reach the compiler as numbers, where
symbols break it (docs/LOG.md, 2026-11-28). Weights keep their names. Only training steps run compiled: evaluation and
sampling come with another length at every call, each of which would be compiled anew, and a compiled block skips hooks.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from moe_core.config import Config
    from moe_core.model.transformer import MoETransformer
    from moe_core.training.clock import Clock

BACKEND = "inductor"
JUDGED_AT_STEP = 50
"""Steps of a run before its speed is believed."""
SAVED_SHARE = 0.1
"""Of a step's time: of the shapes that were measured the one that gained least gained a tenth (docs/LOG.md)."""
FIRST_STEP_SECONDS = 22.0
"""The longest first step that was measured."""

Result = TypeVar("Result")


def can_compile(config: Config, device: torch.device, *, autocast: bool) -> bool:
    """Whether blocks may be compiled at all: it is asked for, on CUDA, in bfloat16, and the tools are at hand.

    torch compiles grouped products in bfloat16 only; dropout of hidden units visits experts in a loop whose sizes it
    would have to know; and its code generator needs triton and a C compiler. On a CPU a step gained a twelfth for 35 s
    of compiling.
    """
    return (
        config.training.compile == "auto"
        and device.type == "cuda"
        and autocast
        and config.training.autocast != "float16"
        and config.model.expert_hidden_dropout == 0
        and find_spec("triton") is not None
        and any(map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang")))
    )


def compiling_pays_back(clock: Clock, steps_left: int) -> bool:
    """Whether compiling saves more over the steps left than it takes, by the speed of the steps so far."""
    return SAVED_SHARE * clock.seconds_per_step * steps_left > FIRST_STEP_SECONDS


def compile_blocks(model: MoETransformer) -> None:
    """Let blocks be compiled at their next call."""
    for block in model.layers:
        block.compile(dynamic=False, backend=BACKEND)


def run_blocks_uncompiled(model: MoETransformer) -> None:
    """Undo compile_blocks."""
    for block in model.layers:
        block._compiled_call_impl = None  # nn.Module.compile has no other way back


@contextmanager
def uncompiled() -> Iterator[None]:
    """Nothing runs compiled inside. The compiler, which takes seconds, is not loaded for it."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


class BlockCompiler:
    """Compiles the blocks of one training, once, at the step from which it pays back."""

    def __init__(self, model: MoETransformer, *, allowed: bool, log: Callable[[str], None]) -> None:
        self._model = model
        self._undecided = allowed
        self._log = log

    def is_due(self, clock: Clock, steps_left: int, settle_clock: Callable[[], None]) -> bool:
        """Whether the step that follows compiles the blocks; asked before each step, it says so once at most.

        `settle_clock` waits for the steps that the clock has counted. Resumed runs know their speed at once.
        """
        if not self._undecided or clock.steps < JUDGED_AT_STEP:
            return False
        settle_clock()
        self._undecided = False
        return compiling_pays_back(clock, steps_left)

    def first_step(self, compute: Callable[[], Result]) -> Result:
        """What `compute` gives with compiled blocks; where they cannot be compiled the run goes on without."""
        self._log("the blocks are compiled now; this step takes up to half a minute")
        compile_blocks(self._model)
        try:
            return compute()
        except Exception as error:  # of the compiler, of the tools it calls, of what it makes
            reason = " ".join(str(error).split("\n")[:2])  # torch names the cause in its second line
            self._log(f"the blocks could not be compiled and the run goes on without: {reason}")
            run_blocks_uncompiled(self._model)
            self._model.zero_grad(set_to_none=True)
            return compute()
