"""How likely a model finds a continuation of a text: what choosing among options, and lm-eval, are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from moe_core.data.windows import TOKENS_PER_BATCH, reaching_back
from moe_core.inference.own_model import OwnModel
from moe_core.inference.protocol import LanguageModel
from moe_core.inference.scoring import token_nats, token_ranks
from moe_core.progress import Progress, silent


@dataclass(frozen=True)
class Likelihood:
    """The likelihood of one continuation."""

    log_probability: float
    """Sum of ln p over its tokens, <= 0."""
    greedy: bool
    """Every token of it is the model's first guess: greedy decoding writes it."""


class Continuation(NamedTuple):
    """Token ids that are known, and those that follow."""

    context: Sequence[int]
    ids: Sequence[int]


class _Window(NamedTuple):
    of: int
    """Which continuation."""
    read: list[int]
    predicted: list[int]
    """The tokens that follow each of the last len(predicted) tokens of `read`."""


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

    A token sees the context_window tokens before it at most. A continuation longer than that is scored in the windows
    of documents (moe_core.data.windows), which are those of lm-eval's rolling log-likelihood; so
    `encode_pair(model, "", text)` scores a whole text.
    """
    if isinstance(model, OwnModel):
        model.model.check_writes()
    report = progress or silent
    windows = [
        window for at, pair in enumerate(continuations) for window in _windows(at, pair, max(1, model.context_window))
    ]
    windows.sort(key=lambda window: len(window.read))
    totals, greedy = np.zeros(len(continuations)), np.ones(len(continuations), dtype=bool)
    done = 0
    while done < len(windows):
        # Of similar length, ascending: the last one of a batch is its longest.
        size = next(
            n
            for n in range(len(windows) - done, 0, -1)
            if n == 1 or n * len(windows[done + n - 1].read) <= TOKENS_PER_BATCH
        )
        batch = windows[done : done + size]
        for window, (log_p, first) in zip(batch, _score(model, batch), strict=True):
            totals[window.of] += log_p
            greedy[window.of] &= first
        done += size
        report("weighing options", done, len(windows))
    return [Likelihood(float(total), bool(first)) for total, first in zip(totals, greedy, strict=True)]


def _windows(at: int, pair: Continuation, size: int) -> list[_Window]:
    ids, known = [*pair.context, *pair.ids], len(pair.context)
    if not known:
        raise ValueError("a continuation needs at least one token before it")
    return [
        _Window(at, ids[start:end], ids[fresh + 1 : end + 1])
        for start, fresh, end in reaching_back(0, known - 1, len(ids) - 1, size)
    ]


@torch.inference_mode()
def _score(model: LanguageModel, batch: Sequence[_Window]) -> list[tuple[float, bool]]:
    """(ln p, all first guesses) of what each window predicts. Padding stands behind the text: it changes nothing."""
    longest = max(len(window.read) for window in batch)
    ids_BS = torch.tensor([window.read + window.read[-1:] * (longest - len(window.read)) for window in batch])
    logits_BSV = model.logits(ids_BS.to(model.device))
    found = []
    for window, logits_SV in zip(batch, logits_BSV, strict=True):
        end = len(window.read)
        logits_NV = logits_SV[end - len(window.predicted) : end]
        targets_N = torch.tensor(window.predicted, device=logits_NV.device)
        nats = float(token_nats(logits_NV, targets_N).double().sum())
        found.append((-nats, bool((token_ranks(logits_NV, targets_N) == 1).all())))
    return found
