"""How the next token is drawn from what the model expects."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from moe_core.errors import RunError, UsageError


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

    @property
    def words(self) -> str:
        """All of it for people: "at most 200 tokens, temperature 0.8, top-k 50, top-p 0.95, seed 0"."""
        return (
            f"at most {self.max_new_tokens:,} tokens, temperature {self.temperature:g}, top-k {self.top_k}, top-p "
            f"{self.top_p:g}, seed {self.seed}"
        )

    def __post_init__(self) -> None:
        _require("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1")
        finite = math.isfinite(self.temperature) and self.temperature >= 0
        _require("temperature", self.temperature, finite, "a number from 0 (greedy) up")
        _require("top_k", self.top_k, self.top_k >= 0, "0 (all tokens) or more")
        _require("top_p", self.top_p, 0 < self.top_p <= 1, "more than 0 and at most 1")
        _require("seed", self.seed, 0 <= self.seed < 2**63, "0 to 2^63 - 1")


def sample(logits_V: torch.Tensor, sampling: SamplingConfig, random: torch.Generator) -> int:
    """Draw a token id: temperature, then top-k, then top-p (nucleus sampling, arXiv:1904.09751).

    `logits_V` is float64 on the CPU, so that any positive temperature leaves finite probabilities. An entry of -inf is
    never drawn. Raises RunError where a logit is NaN or +inf, or all are -inf.
    """
    # NaN is the largest of all to torch.
    if not math.isfinite(float(logits_V.max())):
        raise RunError(
            "the model's output is not finite (NaN, +infinity, or -infinity for every token); its weights are damaged: "
            "train the run again, or get the model again"
        )
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


def _require(name: str, value: float, fits: bool, expected: str) -> None:
    if not fits:
        raise UsageError(f"{name} = {value} is out of range; expected {expected}")
