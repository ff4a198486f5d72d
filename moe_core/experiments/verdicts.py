"""What a result says, in sentences that tables, figures and the command line share."""

from __future__ import annotations

import math

from moe_core.data.splits import HeldOutSplit
from moe_core.experiments.comparison_result import (
    ArmResult,
    ComparisonResult,
    Difference,
    Exposure,
    LongerBudget,
)
from moe_core.experiments.speed_result import SpeedResult
from moe_core.experiments.trend import mean_difference, seed_differences, shared_seeds
from moe_core.words import count_of, number, signed

MAX_NAMED = 4
"""Arms of one kind that a sentence names; of more, the two ends."""
BUSY = 1.25
"""Load average a processor beyond which others were at work: the trainings just before leave up to 1 behind."""
UNSTEADY = 2
"""Times the lower end of the middle 80 % of a ratio beyond which its upper end makes it no measurement."""
FEWEST_SEEDS = 3
"""With two, Student's t has one degree of freedom and its interval is 12.7 times as wide as they are apart."""
SIDE_BY_SIDE: tuple[HeldOutSplit, HeldOutSplit] = ("unseen", "validation")
"""Both splits, in the order of columns. Neither is shown without the other."""
_SPLIT_NAMES: dict[bool, dict[HeldOutSplit, str]] = {
    True: {"unseen": "unseen text", "validation": "held-out text of known kinds"},
    False: {"unseen": "unseen sources", "validation": "validation sources"},
}
"""By whether the text is synthetic. Of the user's own text both splits are whole sources, drawn alike."""


def decimals(value: float | None, digits: int) -> str:
    """A figure with `digits` decimals; "unknown" for what is not finite."""
    return "unknown" if value is None else f"{value:.{digits}f}"


def interval_words(difference: Difference | None) -> str:
    """+0.0200 (+0.0110 to +0.0290), of fewer than FEWEST_SEEDS pairs without the interval; empty for the arm that
    others are held against."""
    if difference is None:
        return ""
    text = signed(difference.mean, 4)
    if difference.pairs < FEWEST_SEEDS:
        return f"{text} ({count_of(difference.pairs, 'pair')}, no interval)"
    if difference.low is not None and difference.high is not None:
        text += f" ({signed(difference.low, 4)} to {signed(difference.high, 4)})"
    return text


def difference_words(difference: Difference | None) -> str:
    """The same of nats per token, and what it makes of perplexity."""
    if difference is None:
        return ""
    return f"{interval_words(difference)}, {signed(100 * math.expm1(difference.mean), 1)} % perplexity"


def split_name(result: ComparisonResult, split: HeldOutSplit) -> str:
    """What a split is called beside the other one."""
    return _SPLIT_NAMES[result.data == "synthetic"][split]


def headline(result: ComparisonResult) -> list[str]:
    """What every page and report begins with, a paragraph each: how much was trained, the losses on both splits, and
    where there are several budgets the trend."""
    losses = [losses_verdict(result, split) for split in SIDE_BY_SIDE]
    return [part for part in (training_words(result), *losses, trend_verdict(result)) if part]


def training_words(result: ComparisonResult) -> str:
    """Tokens and epochs, and tokens a parameter, of all arms or where they are many of the first one."""
    arms = result.arms if len(result.arms) <= MAX_NAMED else result.arms[:1]
    rates = "; ".join(f"{arm.label} {exposure_words(result.exposure_of(arm))}" for arm in arms)
    return (
        f"Trained on {result.tokens:,} tokens, {epochs_words(result)}, with {count_of(len(result.seeds), 'seed')}. "
        f"Tokens per parameter (per active one): {rates}."
    )


def exposure_words(exposure: Exposure) -> str:
    """0.17 (0.49)"""
    return f"{number(exposure.tokens_per_parameter)} ({number(exposure.tokens_per_active_parameter)})"


def epochs_words(result: ComparisonResult, times: int = 1) -> str:
    """0.27 epochs of the text"""
    epochs = result.exposure_of(result.arms[0], times).epochs
    return "epochs not kept" if epochs is None else f"{number(epochs)} epochs of the text"


def losses_verdict(result: ComparisonResult, split: HeldOutSplit) -> str:
    """Which arms lose less than the first one on the split, which more, and which cannot be told apart."""
    first, *others = result.arms
    one_pair = "cannot be tested on one seed"
    groups: dict[str, list[str]] = {"higher": [], "lower": [], "not distinguishable": [], one_pair: []}
    known = [(arm.scores.nats(split).difference, arm.label) for arm in others]
    for difference, label in sorted(((d, label) for d, label in known if d is not None), key=lambda at: at[0].mean):
        kind = one_pair if difference.p_value is None else difference.verdict
        groups[kind].append(f"{label} ({signed(difference.mean, 3)})")
    parts = [f"{kind}: {_listed_arms(names)}" for kind, names in groups.items() if names]
    if not parts:
        return f"{first.label} alone; nothing to hold it against."
    return (
        f"Loss on {split_name(result, split)}, against {first.label} with "
        f"{decimals(first.scores.nats(split).mean, 3)} nats per token: {'; '.join(parts)}."
    )


def trend_verdict(result: ComparisonResult) -> str:
    """Where the differences go with more tokens, over the seeds of both budgets; empty where there is one budget."""
    sentences = []
    for budget in result.longer or ():
        seeds = shared_seeds(result, budget)
        few = ", too few for an interval worth the name" if len(seeds) < FEWEST_SEEDS else ""
        changes = [f"{arm.label} {_change_words(result, budget, arm)}" for arm in result.arms[1:]]
        sentences.append(
            f"With {budget.times} times the tokens ({epochs_words(result, budget.times)}; over the same "
            f"{count_of(len(seeds), 'seed')}{few}), nats above {result.arms[0].label}: {'; '.join(changes)}."
        )
    return " ".join(sentences)


def _change_words(result: ComparisonResult, budget: LongerBudget, arm: ArmResult) -> str:
    """-0.028 becomes -0.047 on unseen text, ..."""
    seeds, both = shared_seeds(result, budget), []
    for split in SIDE_BY_SIDE:
        found = seed_differences(result, arm, split)
        before, after = (mean_difference(found, tokens, seeds) for tokens in (result.tokens, budget.tokens))
        if before is not None and after is not None:
            both.append(f"{signed(before, 3)} becomes {signed(after, 3)} on {split_name(result, split)}")
    return ", ".join(both) or "cannot be told"


def shortcomings(result: ComparisonResult) -> str:
    """What a result from before 2026-11-28 lacks, in a sentence; empty where it lacks nothing."""
    missing = []
    if result.rates_chosen_on == "unseen":
        missing.append("its learning rates were chosen on the scored documents, which flatters whoever gains most")
    if result.speed is not None and result.speed.text is None:
        missing.append("reading and writing were timed on random ids, which choose experts as no text does")
    if result.text_tokens is None:
        missing.append("the length of its training text was not kept, so its epochs are unknown")
    if result.kind == "dense" and result.rates_chosen_on == "unseen" and not result.longer:
        missing.append("it has one budget, so no trend")
    return f"This result, or the plan it follows, is from before 2026-11-28: {'; '.join(missing)}." if missing else ""


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
    """The machine that timed and what it read, in a line or two."""
    found = speed.environment
    text = (
        f"Timed {speed.date[:10]} on {found.processor}, {speed.threads} threads, torch {found.versions['torch']}, "
        f"{'on random ids' if speed.text is None else 'on held-out text'}; all arms in turn within every round."
    )
    if found.load_average_before > BUSY * (found.processors_usable or 1):
        text += (
            f" The machine was busy (load average {found.load_average_before:.1f} on "
            f"{count_of(found.processors_usable or 1, 'processor')}): trust the ratios, not the seconds."
        )
    unsteady = [
        task
        for task, times in speed.tasks.items()
        if any(arm.times_high > UNSTEADY * arm.times_low for arm in times.arms.values())
    ]
    if unsteady:
        text += (
            f" It was too noisy for {'; '.join(unsteady)}: ratios vary more than {UNSTEADY}-fold from round to round. "
            "Measure them again with --time-again when nothing else runs."
        )
    return text
