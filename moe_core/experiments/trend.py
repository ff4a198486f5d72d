"""Differences to the first arm at every budget, seed by seed: where they go with more tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moe_core.data.splits import HeldOutSplit
from moe_core.experiments.comparison_result import ArmResult, ComparisonResult, LongerBudget


@dataclass(frozen=True)
class SeedDifference:
    """Of an arm to the first one, with one seed at one budget."""

    tokens: int
    """That each training read."""
    seed: int
    nats: float
    """Per token; above 0 the arm loses more than the first one."""


def seed_differences(result: ComparisonResult, arm: ArmResult, split: HeldOutSplit) -> list[SeedDifference]:
    """At every budget, for every seed that both have a loss for."""
    first = result.arms[0]
    budgets = [(result.tokens, result.seeds, arm.scores, first.scores)]
    budgets += [(one.tokens, one.seeds, one.scores[arm.name], one.scores[first.name]) for one in result.longer or ()]
    return [
        SeedDifference(tokens, seed, nats - of_first)
        for tokens, seeds, scores, reference in budgets
        for seed, nats, of_first in zip(seeds, scores.nats(split).values, reference.nats(split).values, strict=True)
        if nats is not None and of_first is not None
    ]


def shared_seeds(result: ComparisonResult, budget: LongerBudget) -> tuple[int, ...]:
    """Seeds of the first budget and of a longer one: over others, a difference between budgets may be one of seeds."""
    return tuple(seed for seed in budget.seeds if seed in result.seeds)


def mean_difference(found: Sequence[SeedDifference], tokens: int, seeds: Sequence[int]) -> float | None:
    """Mean nats per token at one budget over some seeds; None where one of them is missing."""
    nats = [one.nats for one in found if one.tokens == tokens and one.seed in seeds]
    return float(np.mean(nats)) if nats and len(nats) == len(seeds) else None
