"""Write on from a prompt, token by token, and keep through which experts every new token passes."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from moe_core.errors import RunError, UsageError
from moe_core.inference.loaded import Loaded, context_window
from moe_core.model.kv_cache import KVCache
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
    """Of these, only the likeliest that together reach this probability, at least one; in (0, 1]."""
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
    loaded: Loaded, prompt: str, sampling: SamplingConfig | None = None, intervention: Intervention | None = None
) -> Iterator[GeneratedToken]:
    """Continue `prompt`; stops at end-of-text, which is not given out, or after sampling.max_new_tokens tokens.

    The model sees the last tokens only, from half a `context_window` up to a whole one: when the cache is full, the
    later half of it is read in anew and generation goes on. A longer prompt is read from its last whole window. An
    empty prompt starts a new text. Bytes of a character that the last token leaves unfinished are not given out.
    An `intervention` changes how the prompt is read, too; other users of the same model do not see it.
    Raises at once: DataError when UTF-8 cannot hold the prompt, UsageError when the model cannot do the intervention.
    """
    token_ids = [loaded.tokenizer.end_of_text, *loaded.tokenizer.encode(prompt)]
    if intervention is not None:
        intervention.check(loaded.model)
    return _generate(loaded, token_ids, sampling or SamplingConfig(), intervention)


def _generate(
    loaded: Loaded, token_ids: list[int], sampling: SamplingConfig, intervention: Intervention | None
) -> Iterator[GeneratedToken]:
    reader = _Reader(loaded, intervention)
    random = torch.Generator().manual_seed(sampling.seed)
    characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
    logits_V = reader.read(token_ids).logits
    for _ in range(sampling.max_new_tokens):
        token_id = sample(logits_V, sampling, random)
        if token_id == loaded.tokenizer.end_of_text:
            return
        loss = float(torch.logsumexp(logits_V, 0) - logits_V[token_id])
        step = reader.read([token_id])
        text = characters.decode(loaded.tokenizer.token_bytes(token_id))
        yield GeneratedToken(token_id, text, step.experts, step.scores, loss)
        logits_V = step.logits


def sample(logits_V: torch.Tensor, sampling: SamplingConfig, random: torch.Generator) -> int:
    """Draw a token id: temperature, then top-k, then top-p (nucleus sampling, arXiv:1904.09751).

    `logits_V` is float64 on the CPU, so that any positive temperature leaves finite probabilities.
    """
    if not torch.isfinite(logits_V).all():
        raise RunError("the model's output is not finite; its weights are damaged: train the run again")
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    descending = torch.sort(logits_V, descending=True, stable=True)
    kept = len(logits_V) if sampling.top_k == 0 else min(sampling.top_k, len(logits_V))
    # Relative to the largest, so that a tiny temperature gives -inf for the others and never inf - inf.
    scaled = (descending.values[:kept] - descending.values[0]) / sampling.temperature
    probabilities = scaled.softmax(0)
    before = probabilities.cumsum(0) - probabilities
    probabilities = torch.where(before < sampling.top_p, probabilities, 0.0)
    return int(descending.indices[torch.multinomial(probabilities, 1, generator=random)])


@dataclass(frozen=True, eq=False)
class _Step:
    logits: torch.Tensor
    """[V] float64 on the CPU, for the token after the last one read."""
    experts: NDArray[np.int16]
    scores: NDArray[np.float32]
    """[L, K] of the last token read."""


class _Reader:
    """The model with its key/value cache: reads tokens in, tells what it expects next."""

    def __init__(self, loaded: Loaded, intervention: Intervention | None) -> None:
        self._model = loaded.model
        self._intervention = intervention
        self._window = context_window(loaded)
        self._recent: list[int] = []
        """Tokens in the cache."""
        self._cache = self._new_cache()

    @torch.inference_mode()
    def read(self, token_ids: list[int]) -> _Step:
        """Append tokens. What does not fit the window makes the cache start anew from the later part of the text."""
        new = token_ids[-self._window :]
        if len(self._recent) + len(new) > self._window:
            keep = max(self._window // 2, len(new))
            new = [*self._recent, *new][-keep:]
            self._recent, self._cache = [], self._new_cache()
        self._recent += new
        with nullcontext() if self._intervention is None else intervene(self._model, self._intervention):
            output = self._model(torch.tensor([new], device=self._cache.keys.device), cache=self._cache)
        routed = output.router_outputs
        return _Step(
            logits=output.logits[0, -1].cpu().double(),
            experts=torch.stack([layer.router_indices[-1] for layer in routed]).to(torch.int16).cpu().numpy(),
            scores=torch.stack([layer.router_scores[-1] for layer in routed]).float().cpu().numpy(),
        )

    def _new_cache(self) -> KVCache:
        weight = next(self._model.parameters())
        return KVCache(self._model.config, 1, self._window, weight.dtype, weight.device)


def _require(name: str, value: float, fits: bool, expected: str) -> None:
    if not fits:
        raise UsageError(f"{name} = {value} is out of range; expected {expected}")
