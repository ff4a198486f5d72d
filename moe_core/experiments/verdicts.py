"""What a result says, in sentences that tables, figures and the command line share."""

from __future__ import annotations

import math

from moe_core.experiments.comparison_result import ComparisonResult, Difference, SpeedResult
from moe_core.words import count_of, signed

MAX_NAMED = 4
"""Arms of one kind that a sentence names; of more, the two ends."""


def decimals(value: float | None, digits: int) -> str:
    """A figure with `digits` decimals; "unknown" for what is not finite."""
    return "unknown" if value is None else f"{value:.{digits}f}"


def interval_words(difference: Difference | None) -> str:
    """+0.0200 (+0.0110 to +0.0290); empty for the arm that others are held against."""
    if difference is None:
        return ""
    text = signed(difference.mean, 4)
    if difference.low is not None and difference.high is not None:
        text += f" ({signed(difference.low, 4)} to {signed(difference.high, 4)})"
    return text


def difference_words(difference: Difference | None) -> str:
    """The same of nats per token, and what it makes of perplexity."""
    if difference is None:
        return ""
    return f"{interval_words(difference)}, {signed(100 * math.expm1(difference.mean), 1)} % perplexity"


def losses_verdict(result: ComparisonResult) -> str:
    """Which arms lose less than the first one on unseen text, which more, and which cannot be told apart."""
    first, *others = result.arms
    groups: dict[str, list[str]] = {"higher": [], "lower": [], "not distinguishable": []}
    known = [(arm.scores.unseen_nats.difference, arm.label) for arm in others]
    for difference, label in sorted(((d, label) for d, label in known if d is not None), key=lambda at: at[0].mean):
        groups[difference.verdict].append(f"{label} ({signed(difference.mean, 3)})")
    parts = [f"{kind}: {_listed_arms(names)}" for kind, names in groups.items() if names]
    if not parts:
        return f"{first.label} alone; nothing to hold it against."
    return (
        f"Loss on unseen text over {count_of(len(result.seeds), 'seed')}, against {first.label} with "
        f"{decimals(first.scores.unseen_nats.mean, 3)} nats per token: {'; '.join(parts)}."
    )


def _listed_arms(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= MAX_NAMED else f"{len(names)} others, from {names[0]} to {names[-1]}"


def speed_verdict(result: ComparisonResult, task: str) -> str:
    """How many times as fast as the first arm the others are at `task`."""
    if result.speed is None:
        return "Times are not measured yet."
    first, *others = result.arms
    arms = result.speed.tasks[task].arms
    parts = [f"{arm.label} {arms[arm.name].times:.2f} times" for arm in others if arm.name in arms]
    return f"{task[:1].upper()}{task[1:]}, as fast as {first.label}: {', '.join(parts)}."


def where_measured(speed: SpeedResult) -> str:
    """The machine that timed, in one line."""
    found = speed.environment
    return (
        f"Timed {speed.date[:10]} on {found.processor}, {speed.threads} threads, torch "
        f"{found.versions['torch']}; all arms in turn within every round."
    )
