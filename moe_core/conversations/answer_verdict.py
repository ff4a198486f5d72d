"""What can be said of an answer in a sentence: how fast it was written, and whether one expert wrote most of it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from moe_core.conversations.threads import Answer, WrittenTokens
from moe_core.words import count_of, fixed, percent

FEWEST_TOKENS = 30
"""Of independent ones: with fewer the busiest of evenly used experts may have almost any share."""
LONGEST_LAG = 50
_DRAWS, _SEED, _CERTAINTY = 2_000, 0, 0.99


def answer_verdict(answer: Answer, tokens: WrittenTokens | None, layer: int) -> str:
    """Who wrote how much and how fast; and in this layer, which expert wrote most, against what even use gives."""
    name = answer.settings.model if answer.writer is None else answer.writer.name
    changed = "" if answer.change is None else f" {answer.change.what}"
    wrote = f"{_capital(name)}{changed} wrote {count_of(answer.tokens, 'token')}"
    speed = answer.tokens_per_second
    if speed is not None:
        wrote += f" at {fixed(speed, 0, thousands=True)} tokens/s"
    if answer.writer is None or tokens is None or not answer.tokens:
        return f"{wrote}."
    if layer not in answer.writer.layers:
        return f"{wrote}. It has no experts to tell apart." if not answer.writer.layers else f"{wrote}."
    return f"{wrote}. {busiest_verdict(tokens, answer.writer.layers.index(layer), layer, answer.writer.num_experts)}"


def busiest_verdict(tokens: WrittenTokens, row: int, layer: int, num_experts: int) -> str:
    """Whether the layer's busiest expert has more first choices than the busiest of `num_experts` that are used evenly,
    99 of 100 times. Tokens that follow each other often choose alike: they count as the fewer that would be as sure."""
    first = first_experts(tokens, row)
    first = first[first >= 0]
    if not len(first):
        return f"No token of it went through an expert of layer {layer}."
    counts = np.bincount(first, minlength=num_experts)
    busiest = int(counts.argmax())
    effective = independent_tokens(first == busiest)
    if effective < FEWEST_TOKENS:
        return (
            f"Which expert of layer {layer} wrote most cannot be told: {count_of(len(first), 'token')} tell no more "
            f"than {count_of(int(effective), 'independent one')}, and it takes {FEWEST_TOKENS}."
        )
    share, limit = float(counts[busiest]) / len(first), busiest_by_chance(int(effective), num_experts)
    even = f"the busiest of {num_experts} evenly used ones has at most {percent(limit)} by chance"
    if share > limit:
        return f"In layer {layer} expert {busiest} wrote most: first choice of {percent(share)} of them, while {even}."
    return (
        f"In layer {layer} no expert wrote more than chance explains: expert {busiest} is the first choice of "
        f"{percent(share)} of them, and {even}."
    )


def first_experts(tokens: WrittenTokens, row: int) -> npt.NDArray[np.int16]:
    """[S] the expert with the largest weight in the layer at `row`; -1 where none was used."""
    experts, weights = tokens.experts[:, row], np.where(tokens.experts[:, row] >= 0, tokens.weights[:, row], -1.0)
    best = weights.argmax(axis=1)
    return np.take_along_axis(experts, best[:, None], axis=1)[:, 0]


def independent_tokens(chosen: npt.NDArray[np.bool_]) -> float:
    """S divided by 1 + 2 x the sum of autocorrelations, up to the first that is not positive (Geyer, 1992)."""
    S = len(chosen)
    centred = chosen - chosen.mean()
    variance = float(centred @ centred)
    if not variance:
        return float(S)
    time = 1.0
    for lag in range(1, min(LONGEST_LAG, S // 2) + 1):
        correlation = float(centred[:-lag] @ centred[lag:]) / variance
        if correlation <= 0:
            break
        time += 2 * correlation
    return S / time


@lru_cache(maxsize=256)
def busiest_by_chance(tokens: int, num_experts: int) -> float:
    """The share of the busiest expert that is exceeded once in 100 times where every token takes any of them alike."""
    random = np.random.default_rng(_SEED)
    # In pieces, as all draws of many experts at once would need much memory.
    piece = max(1, 4_000_000 // num_experts)
    even = np.full(num_experts, 1 / num_experts)
    most = [
        random.multinomial(tokens, even, size=min(piece, _DRAWS - start)).max(axis=1)
        for start in range(0, _DRAWS, piece)
    ]
    return float(np.quantile(np.concatenate(most), _CERTAINTY, method="higher")) / tokens


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
