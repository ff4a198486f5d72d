"""A score, its 95 % interval, and what it is held against: chance, or the same measure of held-out text.

A score is never given without that level. Questions count as independent; tokens do not, so certainty about text is
counted in sources, and in documents where each was written on once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from moe_core.routing.measures.against_chance import CHANCE
from moe_core.routing.statistics.intervals import (
    mean_error,
    number_of_hits_p,
    ratio_error,
    student_interval,
    student_p,
    wilson,
)
from moe_core.routing.statistics.multiple_comparisons import SIGNIFICANCE

CLEAR_EFFECT = 0.1
"""`Score.effect` from which a significant difference is called clear."""

Against = Literal["chance", "held-out text"]
Floats = npt.ArrayLike


@dataclass(frozen=True)
class Score:
    """One measured number. Numbers that cannot be known are NaN."""

    name: str
    value: float
    low: float
    """Lower end of the 95 % interval of `value`."""
    high: float
    level: float
    """The value that chance reaches, or held-out text has."""
    level_is: str
    """How `level` comes about, for people."""
    p_value: float
    """Two-sided, of no difference between `value` and `level`; not adjusted for other scores."""
    effect: float
    """Against chance: part of the way from `level` to the best possible value, below 0 when worse than chance.
    Against held-out text: the difference."""
    n: int
    unit: str
    """The unit that `n` counts, which is taken to be independent: "question", "source", "document"."""
    against: Against = "chance"


def verdict(score: Score, p_adjusted: float) -> str:
    """In words; `p_adjusted` is the p-value adjusted for the other scores of the report (NaN: cannot be tested)."""
    if math.isnan(p_adjusted):
        return f"cannot be tested: too few {score.unit}s"
    if p_adjusted > SIGNIFICANCE:
        return CHANCE.replace("chance", score.against)
    how = "clearly" if abs(score.effect) >= CLEAR_EFFECT else "slightly"
    better = {"chance": ("better", "worse"), "held-out text": ("higher", "lower")}[score.against]
    return f"{how} {better[0] if score.effect > 0 else better[1]} than {score.against}"


def of_questions(
    name: str, correct: Sequence[bool], chance: float | Sequence[float], level_is: str, unit: str = "question"
) -> Score:
    """The share of right answers. `chance`: probability of a right answer by chance, of each question or of all.

    Interval: Wilson (1927). p: exact, the sum of all numbers of right answers that are no likelier by chance.
    """
    hits, chance_N = sum(map(bool, correct)), np.broadcast_to(np.asarray(chance, dtype=np.float64), len(correct))
    n, level = len(correct), float(chance_N.mean()) if len(correct) else math.nan
    value = hits / n if n else math.nan
    low, high = wilson(hits, n)
    return Score(
        name=name,
        value=value,
        low=low,
        high=high,
        level=level,
        level_is=level_is,
        p_value=number_of_hits_p(hits, chance_N) if n else math.nan,
        effect=(value - level) / (1 - level) if level < 1 else 0.0,
        n=n,
        unit=unit,
    )


def of_sources(
    name: str,
    loss_C: Floats,
    chance_C: Floats,
    weight_C: Floats,
    stratum_C: Floats,
    level_is: str,
    *,
    exponential: bool = False,
    best: float = 0.0,
    unit: str = "source",
) -> Score:
    """A mean over tokens, whose C sources are independent: sum(loss_C) / sum(weight_C), against that of chance_C.

    `loss_C`, `chance_C`: sums over a source's tokens; `weight_C`: their number; `stratum_C`: the source's domain, whose
    share of the text was chosen, not drawn. `exponential`: the value is exp(mean), as a perplexity is of nats. `best`:
    the best possible mean. Interval and p: Student's t of a ratio estimator, linearised, within strata.
    """
    loss, chance, weight = (np.asarray(values, dtype=np.float64) for values in (loss_C, chance_C, weight_C))
    strata = np.asarray(stratum_C)
    mean, level = float(loss.sum() / weight.sum()), float(chance.sum() / weight.sum())
    low, high = student_interval(mean, *ratio_error(loss, weight, strata))
    difference = mean - level
    shown = _exp if exponential else float
    return Score(
        name=name,
        value=shown(mean),
        low=shown(low),
        high=shown(high),
        level=shown(level),
        level_is=level_is,
        p_value=student_p(difference, *ratio_error(loss - chance, weight, strata), len(loss)),
        effect=difference / (best - level) if best != level else 0.0,
        n=len(loss),
        unit=unit,
    )


def of_pairs(name: str, values: Sequence[float], held_out: Sequence[float], level_is: str) -> Score:
    """The mean of a measure over documents the model wrote on, against that of the documents' own going on.

    Pairs with a NaN are left out. Interval: Student's t. p: paired t-test.
    """
    both = np.array([values, held_out], dtype=np.float64).reshape(2, -1)
    written, own = both[:, ~np.isnan(both).any(axis=0)]
    n = len(written)
    value, level = (float(side.mean()) if n else math.nan for side in (written, own))
    differences = written - own
    low, high = student_interval(value, mean_error(written), n - 1)
    return Score(
        name=name,
        value=value,
        low=low,
        high=high,
        level=level,
        level_is=level_is,
        p_value=student_p(value - level, mean_error(differences), n - 1, n),
        effect=value - level,
        n=n,
        unit="document",
        against="held-out text",
    )


def of_paired_shares(name: str, hits: Sequence[bool], held_out: Sequence[bool], level_is: str) -> Score:
    """The same for a property that a document has or has not. Interval: Wilson. p: exact McNemar test."""
    n = len(hits)
    only = sum(a and not b for a, b in zip(hits, held_out, strict=True))
    other = sum(b and not a for a, b in zip(hits, held_out, strict=True))
    value, level = (sum(map(bool, side)) / n if n else math.nan for side in (hits, held_out))
    low, high = wilson(sum(map(bool, hits)), n)
    return Score(
        name=name,
        value=value,
        low=low,
        high=high,
        level=level,
        level_is=level_is,
        p_value=number_of_hits_p(only, np.full(only + other, 0.5)) if n else math.nan,
        effect=value - level,
        n=n,
        unit="document",
        against="held-out text",
    )


def _exp(mean: float) -> float:
    return math.exp(mean) if mean < 700 else math.inf
