"""How fast a pruned model reads and writes beside the whole one, in turn on the same passages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from moe_core.experiments.speed import (
    DECODE_CONTEXT,
    PREFILL_BATCH,
    PREFILL_TOKENS,
    decoding_call,
    passages,
    reading_call,
)
from moe_core.experiments.timing import Spread, interleave
from moe_core.inference.protocol import LanguageModel
from moe_core.model.transformer import MoETransformer
from moe_core.progress import Progress
from moe_core.routing.trace.types import Int32Array

ROUNDS = 20


@dataclass(frozen=True)
class PrunedSpeed:
    """How many times as fast as the whole model: ratios of rounds in which both took their turn."""

    task: str
    times_faster: Spread


@torch.inference_mode()
def pruned_speed(
    whole: MoETransformer, pruned: MoETransformer, text: Int32Array, progress: Progress
) -> tuple[PrunedSpeed, ...]:
    """Prefill of several passages of `text` [N], and one more token behind a passage where the model can write."""
    prompt = passages(text, PREFILL_BATCH, min(PREFILL_TOKENS, whole.config.max_seq_len))
    found = [_timed(_prefill(prompt), reading_call(whole, prompt), reading_call(pruned, prompt), progress)]
    if whole.config.can_write:
        begun = passages(text, 1, min(DECODE_CONTEXT, whole.config.max_seq_len - 1) + 1)
        calls = decoding_call(whole, begun), decoding_call(pruned, begun)
        found.append(_timed("decode, batch 1", *calls, progress))
    return tuple(found)


@torch.inference_mode()
def pruned_reading_speed(
    whole: LanguageModel, pruned: LanguageModel, text: Int32Array, progress: Progress
) -> PrunedSpeed:
    """Prefill of several passages of `text` [N], by any two models."""
    prompt = passages(text, PREFILL_BATCH, min(PREFILL_TOKENS, whole.context_window)).to(whole.device)
    return _timed(_prefill(prompt), lambda: whole.logits(prompt), lambda: pruned.logits(prompt), progress)


def _prefill(prompt: torch.Tensor) -> str:
    return f"prefill {prompt.shape[0]} x {prompt.shape[1]}"


def _timed(task: str, before: Callable[[], object], after: Callable[[], object], progress: Progress) -> PrunedSpeed:
    timings = interleave(
        {"whole": before, "pruned": after}, rounds=ROUNDS, on_round=lambda done: progress("timing", done, ROUNDS)
    )
    return PrunedSpeed(task, timings.times_faster("pruned", "whole"))
