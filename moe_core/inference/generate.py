"""Write on from a prompt, token by token, and keep through which experts every new token passes."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moe_core.errors import RunError, UsageError
from moe_core.inference.open import language_model
from moe_core.inference.own_model import OwnModel
from moe_core.inference.protocol import LanguageModel, Loaded, ReadTokens, check_token_ids
from moe_core.routing import Intervention, intervene


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is drawn. Raises UsageError, naming the value, when one is out of its range."""

    max_new_tokens: int = 200
    """Tokens to write at most; at least 1. Generation also ends when the model ends the text."""
    temperature: float = 0.8
    """Logits are divided by it; 0 = always the likeliest token."""
    top_k: int = 50
    """Only the k likeliest tokens are drawn from; 0 = all."""
    top_p: float = 0.95
    """Only the likeliest of these tokens that together reach this probability, at least one; in (0, 1]."""
    seed: int = 0
    """The same seed, prompt and model give the same text."""

    def __post_init__(self) -> None:
        _require("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1")
        finite = math.isfinite(self.temperature) and self.temperature >= 0
        _require("temperature", self.temperature, finite, "a number from 0 (greedy) up")
        _require("top_k", self.top_k, self.top_k >= 0, "0 (all tokens) or more")
        _require("top_p", self.top_p, 0 < self.top_p <= 1, "more than 0 and at most 1")
        _require("seed", self.seed, 0 <= self.seed < 2**63, "0 to 2^63 - 1")


@dataclass(frozen=True, eq=False)
class GeneratedToken:
    """One token the model wrote, and its way through the model when it was read back in."""

    token_id: int
    text: str
    """The characters this token completes: empty in the middle of a character, never part of one."""
    experts: NDArray[np.int16]
    """[L, K] chosen experts per MoE layer; -1 = unused slot."""
    scores: NDArray[np.float32]
    """[L, K] combine weights."""
    loss: float
    """Nats: -ln of its probability under the model itself, at temperature 1 and without top-k or top-p."""


def generate(
    loaded: Loaded | LanguageModel,
    prompt: str,
    sampling: SamplingConfig | None = None,
    intervention: Intervention | None = None,
) -> Iterator[GeneratedToken]:
    """Continue `prompt`; stops where the model ends the text, which is not given out, or at sampling.max_new_tokens.

    The model sees the last tokens only, from half a `context_window` up to a whole one: when the cache is full, the
    later half of it is read in anew and generation goes on. A longer prompt is read from its last whole window. An
    empty prompt starts a new text. Bytes of a character that the last token leaves unfinished are not given out.
    An `intervention` changes how the prompt is read, too; other users of the same model do not see it.
    Raises at once: DataError when UTF-8 cannot hold the prompt, UsageError when the model cannot do the intervention,
    cannot begin a text of its own, or cannot write at all because its routers see the future.
    """
    model = language_model(loaded)
    if isinstance(model, OwnModel):
        model.model.check_writes()
    begin = [] if model.tokenizer.end_of_text is None else [model.tokenizer.end_of_text]
    token_ids = [*begin, *model.tokenizer.encode(prompt)]
    if not token_ids:
        raise UsageError(f"{model.name} has no token that begins a text; expected a prompt of at least one token")
    check_token_ids(model, token_ids)
    if intervention is not None:
        intervention.check(model.model)
    return _generate(model, token_ids, sampling or SamplingConfig(), intervention)


def _generate(
    model: LanguageModel, token_ids: list[int], sampling: SamplingConfig, intervention: Intervention | None
) -> Iterator[GeneratedToken]:
    reader = _Reader(model, intervention)
    random = torch.Generator().manual_seed(sampling.seed)
    characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
    logits_V = _precise(reader.read(token_ids))
    for _ in range(sampling.max_new_tokens):
        token_id = sample(logits_V, sampling, random)
        if token_id in model.end_ids:
            return
        loss = float(torch.logsumexp(logits_V, 0) - logits_V[token_id])
        step = reader.read([token_id])
        text = characters.decode(model.tokenizer.token_bytes(token_id))
        yield GeneratedToken(token_id, text, step.experts, step.scores, loss)
        logits_V = _precise(step)


def _precise(found: ReadTokens) -> torch.Tensor:
    """[V] float64 on the CPU."""
    return found.logits.cpu().double()


def sample(logits_V: torch.Tensor, sampling: SamplingConfig, random: torch.Generator) -> int:
    """Draw a token id: temperature, then top-k, then top-p (nucleus sampling, arXiv:1904.09751).

    `logits_V` is float64 on the CPU, so that any positive temperature leaves finite probabilities.
    """
    if not torch.isfinite(logits_V).all():
        raise RunError("the model's output is not finite; its weights are damaged: train the run again")
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    kept = len(logits_V) if sampling.top_k == 0 else min(sampling.top_k, len(logits_V))
    # Only what may be kept is sorted; of equals the smaller id comes first, as if all were.
    candidates = (logits_V >= logits_V.topk(kept).values[-1]).nonzero()[:, 0]
    descending = torch.sort(logits_V[candidates], descending=True, stable=True)
    # Relative to the largest, so that a tiny temperature gives -inf for the others and never inf - inf.
    scaled = (descending.values[:kept] - descending.values[0]) / sampling.temperature
    probabilities = scaled.softmax(0)
    before = probabilities.cumsum(0) - probabilities
    probabilities = torch.where(before < sampling.top_p, probabilities, 0.0)
    return int(candidates[descending.indices[torch.multinomial(probabilities, 1, generator=random)]])


class _Reader:
    """The model with its cache: reads tokens in, tells what it expects next."""

    def __init__(self, model: LanguageModel, intervention: Intervention | None) -> None:
        self._model = model
        self._intervention = intervention
        self._recent: list[int] = []
        """Tokens in the cache."""
        self._cache: Any = None

    @torch.inference_mode()
    def read(self, token_ids: list[int]) -> ReadTokens:
        """Append tokens. What does not fit the window makes the cache start anew from the later part of the text."""
        window = self._model.context_window
        new = token_ids[-window:]
        if len(self._recent) + len(new) > window:
            keep = max(window // 2, len(new))
            new = [*self._recent, *new][-keep:]
            self._recent, self._cache = [], None
        self._recent += new
        with nullcontext() if self._intervention is None else intervene(self._model.model, self._intervention):
            found = self._model.read(new, self._cache)
        self._cache = found.cache
        return found


def _require(name: str, value: float, fits: bool, expected: str) -> None:
    if not fits:
        raise UsageError(f"{name} = {value} is out of range; expected {expected}")
