"""How fast a pruned model reads and writes beside the whole one, in turn on the same passages."""

from __future__ import annotations

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
    length = min(PREFILL_TOKENS, whole.config.max_seq_len)
    prompt = passages(text, PREFILL_BATCH, length)
    sides = {f"prefill {PREFILL_BATCH} x {length}": [reading_call(model, prompt) for model in (whole, pruned)]}
    if whole.config.can_write:
        begun = passages(text, 1, min(DECODE_CONTEXT, whole.config.max_seq_len - 1) + 1)
        sides["decode, batch 1"] = [decoding_call(model, begun) for model in (whole, pruned)]
    found = []
    for task, (before, after) in sides.items():
        timings = interleave(
            {"whole": before, "pruned": after}, rounds=ROUNDS, on_round=lambda done: progress("timing", done, ROUNDS)
        )
        found.append(PrunedSpeed(task, timings.times_faster("pruned", "whole")))
    return tuple(found)
