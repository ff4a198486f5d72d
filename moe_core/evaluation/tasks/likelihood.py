"""How likely a model finds a continuation of a text: what choosing among options, and lm-eval, are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from moe_core.inference.own_model import OwnModel
from moe_core.inference.protocol import LanguageModel
from moe_core.inference.windows import TOKENS_PER_BATCH
from moe_core.progress import Progress, silent


@dataclass(frozen=True)
class Likelihood:
    """Of one continuation."""

    log_probability: float
    """Sum of ln p over its tokens, <= 0."""
    greedy: bool
    """Every token of it is the model's first guess: greedy decoding writes it."""


class Continuation(NamedTuple):
    """Token ids that are known, and those that follow."""

    context: Sequence[int]
    ids: Sequence[int]


class _Chunk(NamedTuple):
    of: int
    """Which continuation."""
    read: list[int]
    predicted: list[int]
    """What follows the last len(predicted) tokens of `read`."""


def encode_pair(model: LanguageModel, context: str, continuation: str) -> Continuation:
    """Token ids of a text and of what follows it; where the model has an end-of-text, that stands before the text.

    Both are tokenised together and parted where the context alone ends, as lm-eval does: begin the continuation, not
    end the context, with the space between two words.
    """
    before = [] if model.tokenizer.end_of_text is None else [model.tokenizer.end_of_text]
    whole, known = model.tokenizer.encode(context + continuation), model.tokenizer.encode(context)
    return Continuation([*before, *whole[: len(known)]], whole[len(known) :])


def likelihoods(
    model: LanguageModel, continuations: Sequence[Continuation], progress: Progress | None = None
) -> list[Likelihood]:
    """One for each continuation, in their order. Every context has at least one token (ValueError). Raises UsageError
    for a model that sees the future: what stands behind a continuation would decide about it.

    A token sees the context_window tokens before it at most. A continuation longer than that is scored in windows, the
    last one reaching back, as documents are (moe_core.data.tokens.document_batches) and lm-eval's rolling
    log-likelihood; so `encode_pair(model, "", text)` scores a whole text.
    """
    if isinstance(model, OwnModel):
        model.model.check_writes()
    report = progress or silent
    chunks = [
        chunk for at, pair in enumerate(continuations) for chunk in _chunks(at, pair, max(1, model.context_window))
    ]
    chunks.sort(key=lambda chunk: len(chunk.read))
    totals, greedy = np.zeros(len(continuations)), np.ones(len(continuations), dtype=bool)
    done = 0
    while done < len(chunks):
        # Of similar length, ascending: the last one of a batch is its longest.
        size = next(
            n
            for n in range(len(chunks) - done, 0, -1)
            if n == 1 or n * len(chunks[done + n - 1].read) <= TOKENS_PER_BATCH
        )
        batch = chunks[done : done + size]
        for chunk, (log_p, first) in zip(batch, _score(model, batch), strict=True):
            totals[chunk.of] += log_p
            greedy[chunk.of] &= first
        done += size
        report("weighing options", done, len(chunks))
    return [Likelihood(float(total), bool(first)) for total, first in zip(totals, greedy, strict=True)]


def _chunks(at: int, pair: Continuation, window: int) -> list[_Chunk]:
    ids, known = [*pair.context, *pair.ids], len(pair.context)
    if not known:
        raise ValueError("a continuation needs at least one token before it")
    ends = ((start, min(start + window, len(ids))) for start in range(known, len(ids), window))
    return [_Chunk(at, ids[max(0, end - 1 - window) : end - 1], ids[start:end]) for start, end in ends]


@torch.inference_mode()
def _score(model: LanguageModel, batch: Sequence[_Chunk]) -> list[tuple[float, bool]]:
    """(ln p, all first guesses) of what each chunk predicts. Padding stands behind the text: it changes nothing."""
    longest = max(len(chunk.read) for chunk in batch)
    ids_BS = torch.tensor([chunk.read + chunk.read[-1:] * (longest - len(chunk.read)) for chunk in batch])
    logits_BSV = model.logits(ids_BS.to(model.device))
    found = []
    for chunk, logits_SV in zip(batch, logits_BSV, strict=True):
        end = len(chunk.read)
        logits_NV = logits_SV[end - len(chunk.predicted) : end].double()
        target_N = torch.tensor(chunk.predicted, device=logits_NV.device)
        log_p = logits_NV.log_softmax(-1).gather(1, target_N[:, None]).sum()
        found.append((float(log_p), bool((logits_NV.argmax(-1) == target_N).all())))
    return found
