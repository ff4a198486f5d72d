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
    """The same seed, prompt and model give the same text; on CUDA another one than on a processor."""

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
    check_finite(float(logits_V.max()))
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    candidates, probabilities = candidates_of(logits_V, sampling)
    return int(candidates[torch.multinomial(probabilities, 1, generator=random)])


def candidates_of(logits_V: torch.Tensor, sampling: SamplingConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [N] that top-k leaves, and the share [N] by which each is drawn, 0 beyond top-p; for temperatures
    above 0."""
    kept = len(logits_V) if sampling.top_k == 0 else min(sampling.top_k, len(logits_V))
    # Only what may be kept is sorted; of equals the smaller id comes first, as if all were.
    candidates = (logits_V >= logits_V.topk(kept).values[-1]).nonzero()[:, 0]
    descending = torch.sort(logits_V[candidates], descending=True, stable=True)
    # Relative to the largest, so that a tiny temperature gives -inf for the others and never inf - inf.
    scaled = (descending.values[:kept] - descending.values[0]) / sampling.temperature
    probabilities = scaled.softmax(0)
    before = probabilities.cumsum(0) - probabilities
    return candidates[descending.indices[:kept]], torch.where(before < sampling.top_p, probabilities, 0.0)


def check_finite(value: float) -> None:
    """Raise RunError where the largest logit, or a loss, is no finite number."""
    if not math.isfinite(value):
        raise RunError(
            "the model's output is not finite (NaN, +infinity, or -infinity for every token); its weights are damaged: "
            "train the run again, or get the model again"
        )


def ranked_probabilities(
    logits_BV: torch.Tensor, temperature_B: torch.Tensor, top_k_B: torch.Tensor, top_p_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """All token ids [B, V], the likeliest first, and what each is drawn by, float64 [B, V]: as `sample` has it, for
    several texts at once, in shapes that depend on no value, so that the host need not wait for an accelerator."""
    ranked = logits_BV.sort(dim=-1, descending=True, stable=True)
    vocabulary = logits_BV.shape[-1]
    greedy_B = temperature_B == 0
    kept_B = torch.where(greedy_B, 1, torch.where(top_k_B == 0, vocabulary, top_k_B))
    values = ranked.values.double()
    scaled = (values - values[:, :1]) / torch.where(greedy_B, 1.0, temperature_B)[:, None]
    beyond = torch.arange(vocabulary, device=logits_BV.device) >= kept_B[:, None]
    probabilities = scaled.masked_fill(beyond, -math.inf).softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    return ranked.indices, torch.where(before < top_p_B[:, None], probabilities, 0.0)


def draw_each(
    logits_BV: torch.Tensor,
    uniform_B: torch.Tensor,
    temperature_B: torch.Tensor,
    top_k_B: torch.Tensor,
    top_p_B: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A token id [B] for every text by its number in [0, 1), and the loss of each, float64 [B], as GeneratedToken.loss:
    NaN where `sample` would raise. Nothing is read back from an accelerator."""
    ids_BV, p_BV = ranked_probabilities(logits_BV, temperature_B, top_k_B, top_p_B)
    reached_BV = p_BV.cumsum(-1)
    rank_B = (reached_BV <= (uniform_B * reached_BV[:, -1])[:, None]).sum(-1)
    # Rounding must not reach a token of probability 0 behind the last one that is kept.
    rank_B = rank_B.minimum((p_BV > 0).sum(-1) - 1).clamp(min=0)
    drawn_B = ids_BV.gather(-1, rank_B[:, None])[:, 0]
    doubles_BV = logits_BV.double()
    return drawn_B, doubles_BV.logsumexp(-1) - doubles_BV.gather(-1, drawn_B[:, None])[:, 0]


def _require(name: str, value: float, fits: bool, expected: str) -> None:
    if not fits:
        raise UsageError(f"{name} = {value} is out of range; expected {expected}")
