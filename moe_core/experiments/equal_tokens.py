"""Which of several runs is lower at the same tokens, and whether one seed each can tell.

How far two trainings with the same settings lie apart when only the seed differs is known from the comparisons that
were run with several seeds (decision 0031). Two runs of one seed each are told apart only beyond that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from moe_core.data.splits import HeldOutSplit
from moe_core.experiments.comparison_result import ComparisonResult
from moe_core.experiments.library import SHIPPED, find_results
from moe_core.runs.curves import LEARNING_RATE, LOSS, RunCurves
from moe_core.words import fixed, listed, percent, short_count

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = 0.95
SPLIT: HeldOutSplit = "unseen"
RATES_APART = 0.2
"""Of the peak: learning rates further apart than this are told, as the loss falls with them."""


@dataclass(frozen=True)
class SeedLimits:
    """Nats per token on unseen text that two trainings of one setting stay within, 95 of 100 times."""

    same_seed: float
    """Of settings that do not matter, both with one seed, so that they read the text in one order."""
    other_seed: float
    """With seeds of their own."""


def seed_limits(results: Iterable[ComparisonResult]) -> SeedLimits | None:
    """The limits of the comparison where seeds matter most; None where none has two seeds.

    Within each arm the variance over seeds, pooled over the arms: the difference of two runs has twice that. With one
    seed it is the variance of the difference to the first arm, seed by seed. Student's t makes limits of both.
    """
    same, other = [], []
    for result in results:
        rows = [[math.nan if v is None else v for v in arm.scores.nats(SPLIT).values] for arm in result.arms]
        values = np.array(rows, float)
        other.append(_limit(values, 2.0))
        same.append(_limit(values[1:] - values[0], 1.0))
    known = [(one, two) for one, two in zip(same, other, strict=True) if one is not None and two is not None]
    if not known:
        return None
    return SeedLimits(max(one for one, _ in known), max(two for _, two in known))


@cache
def shipped_seed_limits() -> SeedLimits | None:
    """The limits of the comparisons that come with Moescope."""
    return seed_limits(found.result for found in find_results([SHIPPED]).values())


def _limit(values: np.ndarray, times: float) -> float | None:
    """t times the root of `times` the variance within the rows; None with fewer than one degree of freedom."""
    rows = [row[~np.isnan(row)] for row in values]
    freedom = sum(len(row) - 1 for row in rows if len(row) > 1)
    if freedom < 1:
        return None
    squares = sum(float(((row - row.mean()) ** 2).sum()) for row in rows if len(row) > 1)
    return float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(times * squares / freedom)


@dataclass(frozen=True)
class AtEqualTokens:
    """One run at the tokens that all reached."""

    name: str
    nats: float
    """Per token of unseen text, in a straight line between evaluations."""
    seed: int | None
    rate_left: float | None
    """Its learning rate there, as a part of its peak."""


def lower_loss_words(runs: Sequence[RunCurves], limits: SeedLimits | None) -> str:
    """Which run is lower at the same tokens, in a few sentences; for those that cannot be ranked, why."""
    comparable, reasons = _comparable(runs)
    if len(comparable) < 2:
        return " ".join(["Which is lower cannot be told.", *reasons])
    tokens = min(float(_scored(run)["tokens"].iloc[-1]) for run in comparable)
    at = sorted((_at(run, tokens) for run in comparable), key=lambda one: one.nats)
    losses = ", ".join(f"{one.name} {fixed(one.nats, 2)}" for one in at)
    words = [f"At {short_count(round(tokens))} tokens, the most that all reached, loss on unseen text is {losses}."]
    return " ".join([*words, *_ranking(at, limits), *_unequal_rates(at), *reasons])


def _ranking(at: Sequence[AtEqualTokens], limits: SeedLimits | None) -> list[str]:
    best, others = at[0], at[1:]
    if limits is None:
        return ["Whether that is more than luck cannot be told from one seed each."]
    apart = [one for one in others if one.nats - best.nats > _limit_between(best, one, limits)]
    near = [one for one in others if one not in apart]
    words = []
    if apart:
        gaps = listed([f"{one.name} by {fixed(one.nats - best.nats, 2)}" for one in apart])
        least = max(_limit_between(best, one, limits) for one in apart)
        words.append(
            f"{best.name} is lower than {gaps}, more than seeds alone make ({fixed(least, 2)} in our comparisons of "
            "small models); it is still one seed each."
        )
    if near:
        largest = max(_limit_between(best, one, limits) for one in near)
        words.append(
            f"{listed([one.name for one in near])} cannot be told from {best.name} with one seed: seeds alone make "
            f"{fixed(largest, 2)} nats in our comparisons of small models."
        )
    return words


def _limit_between(one: AtEqualTokens, other: AtEqualTokens, limits: SeedLimits) -> float:
    return limits.same_seed if one.seed is not None and one.seed == other.seed else limits.other_seed


def _unequal_rates(at: Sequence[AtEqualTokens]) -> list[str]:
    """A run in the middle of its schedule, held against one at its end, looks worse than it will be."""
    known = [(one.rate_left, one.name) for one in at if one.rate_left is not None]
    if len(known) < 2 or max(known)[0] - min(known)[0] <= RATES_APART:
        return []
    (high, late), (low, early) = max(known), min(known)
    return [
        f"There the learning rate of {late} is still {percent(high)} of its peak and that of {early} {percent(low)}: "
        f"{late} has its gain from the fall still to come."
    ]


def _comparable(runs: Sequence[RunCurves]) -> tuple[list[RunCurves], list[str]]:
    """Those that were scored on the text of the first one that was, and why the others were not taken."""
    found: list[RunCurves] = []
    reasons = []
    for run in runs:
        if run.is_watched or run.curve(LOSS, SPLIT).empty:
            why = "its own loop trains it" if run.is_watched else "none was scored yet"
            reasons.append(f"{run.name} has no loss on held-out text: {why}.")
        elif not _scored(run)["tokens"].max() > 0:
            reasons.append(f"{run.name} was not scored since its first step.")
        elif found and not _same_text(found[0], run):
            reasons.append(
                f"{run.name} was scored on another text, or with another vocabulary, than {found[0].name}: their nats "
                "per token cannot be compared."
            )
        else:
            found.append(run)
    return found, reasons


def _same_text(one: RunCurves, other: RunCurves) -> bool:
    """Guessing costs as much on both only where text and vocabulary are the same."""
    pairs = ((one.unigram_nats, other.unigram_nats), (one.uniform_nats, other.uniform_nats))
    return all(a is not None and b is not None and math.isclose(a, b, rel_tol=1e-9) for a, b in pairs)


def _scored(run: RunCurves) -> pd.DataFrame:
    return run.curve(LOSS, SPLIT).dropna(subset=["tokens"])


def _at(run: RunCurves, tokens: float) -> AtEqualTokens:
    scored, rates = _scored(run), run.curve(LEARNING_RATE).dropna(subset=["tokens"])
    nats = float(np.interp(tokens, scored["tokens"], scored["value"]))
    peak = float(rates["value"].max()) if len(rates) else 0.0
    left = float(np.interp(tokens, rates["tokens"], rates["value"])) / peak if peak > 0 else None
    return AtEqualTokens(run.name, nats, run.seed, left)
