"""A comparison as Markdown: made of its result alone, so that no figure in it was typed by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping

from moe_core.config.router import SIGHT_WARNING
from moe_core.experiments.comparison_result import (
    ComparisonResult,
    Difference,
    Exposure,
    Score,
    Scores,
)
from moe_core.experiments.published_claims import CLAIMED_DENSE_PERPLEXITY, CLAIMED_PERPLEXITY, fewest_experts
from moe_core.experiments.speed_result import TRAINING_STEP, ArmTimes, SpeedResult
from moe_core.experiments.verdicts import (
    SIDE_BY_SIDE,
    decimals,
    difference_words,
    epochs_words,
    exposure_words,
    headline,
    interval_words,
    shortcomings,
    split_name,
    where_measured,
)
from moe_core.reports.markdown import escape, render, table
from moe_core.words import number, short_count, signed

DOMAINS_SHOWN = 6
SPLIT_NOTES = {
    True: "Unseen text is written with templates that training never met; known kinds are new documents by the "
    "templates of training.",
    False: "Both splits are whole sources that training never met, drawn alike; the validation sources are watched "
    "while training.",
}
"""By whether the text is synthetic."""


def result_table(result: ComparisonResult) -> str:
    """The whole page: headline, losses, trend, cost, speed; for "dense" what arithmetic leaves of published claims."""
    dense = result.kind == "dense"
    return render(
        "comparison.md.j2",
        result=result,
        dense=dense,
        headline=headline(result),
        shortcomings=shortcomings(result),
        summary=summary_table(result),
        losses=_losses_table(result),
        domains=_domains_table(result) if dense else "",
        trend=_trend_table(result) if result.longer else "",
        notes=notes(result),
        details=_cost_table(result) if dense else _routing_table(result),
        timed=None if result.speed is None else where_measured(result.speed),
        times=_times_table(result.speed, result) if dense and result.speed is not None else "",
        bounds=_bounds_table(result) if dense else "",
        fewest=fewest_experts(result.config.model.top_k),
        claimed=(CLAIMED_PERPLEXITY, CLAIMED_DENSE_PERPLEXITY),
        perplexities=[
            (arm.label, split_name(result, split), _percent_change(difference))
            for arm in result.arms[1:]
            for split in SIDE_BY_SIDE
            if (difference := arm.scores.nats(split).difference) is not None
        ],
    )


def summary_table(result: ComparisonResult) -> str:
    """A line an arm, for docs/results.md: what it costs, its loss with its interval and how fast it is.

    Routers have a column for how they share the work.
    """
    return _routers_summary(result) if result.kind == "routers" else _dense_summary(result)


def _dense_summary(result: ComparisonResult) -> str:
    first, tasks = result.arms[0].label, result.speed.tasks if result.speed else {}
    header = ["arm", "parameters (active)", "tokens per parameter (active)", "MFLOPs/token"]
    for split in SIDE_BY_SIDE:
        header += [f"nats/token, {split_name(result, split)}", f"against {first}"]
    rows = [
        [
            arm.label,
            f"{short_count(arm.parameters.total)} ({short_count(arm.parameters.active)})",
            exposure_words(result.exposure_of(arm)),
            f"{arm.flops_per_token.computed / 1e6:.2f}",
            *_with_both_splits(arm.scores, 3),
            *(_times_as_fast(found.arms.get(arm.name)) for found in tasks.values()),
        ]
        for arm in result.arms
    ]
    return table([*header, *(f"{task}: times as fast" for task in tasks)], rows)


def _routers_summary(result: ComparisonResult) -> str:
    first, step = result.arms[0].label, result.speed.tasks[TRAINING_STEP] if result.speed else None
    header = ["router (balanced by)", "experts/token"]
    for split in SIDE_BY_SIDE:
        header += [f"nats/token, {split_name(result, split)}", f"against {first}"]
    header += ["MaxVio", "dead experts", "domain NMI (99 % of shuffles below)"]
    rows = [
        [
            arm.label,
            decimals(arm.mixture_routing().experts_per_token, 2),
            *_with_both_splits(arm.scores, 3),
            decimals(arm.mixture_routing().max_violation.mean, 2),
            decimals(arm.mixture_routing().dead_experts, 1),
            " ".join(
                [
                    _measured_nmi(arm.mixture_routing().domain_nmi),
                    _in_brackets(arm.mixture_routing().domain_nmi_null_p99),
                ]
            ),
            *([] if step is None else [_times_as_fast(step.arms.get(arm.name))]),
        ]
        for arm in result.arms
    ]
    return table([*header, *([] if step is None else ["training step: times as fast"])], rows)


def _in_brackets(value: float | None) -> str:
    return "" if value is None else f"({value:.3f})"


def _times_as_fast(found: ArmTimes | None) -> str:
    return "cannot" if found is None else f"{found.times:.2f}"


def _losses_table(result: ComparisonResult) -> str:
    first = result.arms[0].label
    header = ["arm", "tokens per parameter (active)"]
    for split in SIDE_BY_SIDE:
        header += [f"nats per token, {split_name(result, split)}", f"against {first}"]
    rows = [
        [
            arm.label,
            exposure_words(result.exposure_of(arm)),
            *_with_both_splits(arm.scores, 4),
            " ".join(
                [
                    decimals(arm.scores.unseen_bits_per_byte.mean, 4),
                    *_interval_in_brackets(arm.scores.unseen_bits_per_byte),
                ]
            ),
        ]
        for arm in result.arms
    ]
    return table([*header, f"bits per byte, {split_name(result, 'unseen')}"], rows)


def _with_both_splits(scores: Scores, digits: int) -> list[str]:
    """Loss and difference on one split, then on the other."""
    columns = [(scores.nats(split).mean, scores.nats(split).difference) for split in SIDE_BY_SIDE]
    return [cell for mean, difference in columns for cell in (decimals(mean, digits), difference_words(difference))]


def _domains_table(result: ComparisonResult) -> str:
    """A line a domain, every arm on both splits."""
    columns = [(arm, split) for split in SIDE_BY_SIDE for arm in result.arms if arm.domains(split)]
    header = ["domain, nats per token", *(f"{split_name(result, split)}: {arm.label}" for arm, split in columns)]
    names = list(result.arms[0].by_domain)[:DOMAINS_SHOWN]
    rows = [[escape(name), *(_domain_cell(arm.domains(split), name) for arm, split in columns)] for name in names]
    return table(header, rows)


def _domain_cell(scores: Mapping[str, Score], name: str) -> str:
    return _with_difference(scores[name]) if name in scores else ""


def _trend_table(result: ComparisonResult) -> str:
    """A line an arm and budget, the first budget first."""
    first = result.arms[0].label
    header = ["training tokens", "epochs", "seeds", "arm", "tokens per parameter (active)"]
    for split in SIDE_BY_SIDE:
        header += [f"nats per token, {split_name(result, split)}", f"against {first}"]
    budgets = [(1, result.tokens, len(result.seeds), {arm.name: arm.scores for arm in result.arms})]
    budgets += [(one.times, one.tokens, len(one.seeds), dict(one.scores)) for one in result.longer or ()]
    rows = [
        [
            f"{tokens:,}",
            _epochs(result.exposure_of(arm, times)),
            str(seeds),
            arm.label,
            exposure_words(result.exposure_of(arm, times)),
            *_with_both_splits(scores[arm.name], 4),
        ]
        for times, tokens, seeds, scores in budgets
        for arm in result.arms
    ]
    return table(header, rows)


def _epochs(exposure: Exposure) -> str:
    return "not kept" if exposure.epochs is None else number(exposure.epochs)


def _interval_in_brackets(score: Score) -> list[str]:
    """["[+0.0081 (+0.0047 to +0.0121)]"], or nothing for the first arm."""
    return [] if score.difference is None else [f"[{interval_words(score.difference)}]"]


def _with_difference(score: Score) -> str:
    """0.512 (+0.020): a mean and, after the first arm, its difference; ~ where that is not distinguishable from 0."""
    difference = score.difference
    if difference is None:
        return decimals(score.mean, 3)
    mark = "~" if difference.verdict == "not distinguishable" else ""
    return f"{decimals(score.mean, 3)} ({signed(difference.mean, 3)}{mark})"


def notes(result: ComparisonResult) -> str:
    """How the losses were found, and what they do not say."""
    edges = [arm.label for arm in result.arms if arm.edge]
    text = (
        f"Means of {len(result.seeds)} seeds, {result.tokens:,} training tokens each ({epochs_words(result)}), on "
        f"{_text_name(result)}; guessing by token frequency costs {result.unigram_nats:.3f} nats on "
        f"{split_name(result, 'unseen')}. In brackets the 95 % t-interval of the difference over pairs of equal seeds: "
        "what other weights and another order of the text would change, not another corpus. "
        f"{SPLIT_NOTES[result.data == 'synthetic']}"
    )
    if result.rates_chosen_on == "tuning":
        text += (
            " Each arm has the best of the same learning rates, chosen with a seed that is not scored, on documents "
            "that are neither trained on nor scored."
        )
    elif result.rates_chosen_on == "unseen":
        text += (
            " Each arm has the best of the same learning rates, chosen with a seed that is not scored but on the same "
            "unseen documents that are scored."
        )
    else:
        text += (
            f" All have the same learning rates, found with {result.arms[0].label}; of {len(result.arms) - 1} "
            "intervals, which are not adjusted for their number, one in twenty leaves out 0 by chance."
        )
    for budget in result.longer or ():
        text += f" The budget of {budget.times} times the tokens keeps the rates that were chosen for the first one."
    if edges:
        text += f" The best one tried was the lowest or the highest for: {', '.join(edges)}; a wider search might help."
    if any(arm.sees_future for arm in result.arms):
        text += f" Expert choice: {SIGHT_WARNING[:1].lower()}{SIGHT_WARNING[1:]}"
    return text


def _cost_table(result: ComparisonResult) -> str:
    header = [
        "arm", "parameters", "active", "without embedding", "active of these", "MFLOPs per token", "by torch's counter",
        "without the head", "learning rate",
    ]  # fmt: skip
    rows = []
    for arm in result.arms:
        parameters, flops = arm.parameters, arm.flops_per_token
        rows.append(
            [
                arm.label,
                f"{parameters.total:,}",
                f"{parameters.active:,}",
                f"{parameters.total_without_embedding:,}",
                f"{parameters.active_without_embedding:,}",
                *(_millions(count) for count in (flops.computed, flops.measured, flops.without_head)),
                f"x {arm.factor:g}",
            ]
        )
    return table(header, rows)


def _routing_table(result: ComparisonResult) -> str:
    header = [
        "arm", "experts a token", "MaxVio, mean", "worst", "dead experts", "domain NMI", "99 % of shuffles below",
        "tokens/s, training", "tokens/s, reading",
    ]  # fmt: skip
    rows = [
        [
            arm.label,
            decimals(arm.mixture_routing().experts_per_token, 2),
            decimals(arm.mixture_routing().max_violation.mean, 2),
            decimals(arm.mixture_routing().max_violation.worst, 2),
            decimals(arm.mixture_routing().dead_experts, 1),
            _measured_nmi(arm.mixture_routing().domain_nmi),
            _measured_nmi(arm.mixture_routing().domain_nmi_null_p99),
            *_tokens_per_second(result, arm.name),
        ]
        for arm in result.arms
    ]
    return table(header, rows)


def _measured_nmi(value: float | None) -> str:
    """Empty where there is nothing to measure, as domains in a text of one."""
    return "" if value is None else f"{value:.3f}"


def _tokens_per_second(result: ComparisonResult, arm: str) -> list[str]:
    """Training and reading."""
    if result.speed is None:
        return ["", ""]
    tasks = (result.speed.tasks[TRAINING_STEP], result.speed.reading())
    return [f"{task.tokens / task.arms[arm].seconds:,.0f}" for task in tasks]


def _times_table(speed: SpeedResult, result: ComparisonResult) -> str:
    rows = []
    for task, found in speed.tasks.items():
        for arm in result.arms:
            times = found.arms.get(arm.name)
            if times is None:
                continue
            rows.append(
                [
                    task,
                    arm.label,
                    f"{1000 * times.seconds:.2f} ms ({1000 * times.low:.2f} to {1000 * times.high:.2f})",
                    f"{found.tokens / times.seconds:,.0f}",
                    f"{times.times:.2f} ({times.times_low:.2f} to {times.times_high:.2f})",
                ]
            )
    first = result.arms[0].label
    return table(["task", "arm", "time (middle 80 %)", "tokens/s", f"times as fast as {first}"], rows)


def _bounds_table(result: ComparisonResult) -> str:
    experts = result.config.model.num_experts
    all_bounds = result.bounds or ()
    names = list(all_bounds[0].possible) if all_bounds else []
    header = [
        "experts", "FLOPs saved at most", "times as fast at most", "active parameters at least", "this shape: saved",
        "times as fast", *names,
    ]  # fmt: skip
    rows = [
        [
            f"**{row.experts}**" if row.experts == experts else str(row.experts),
            f"{row.flops_saved:.0%}",
            f"{row.speedup:.2f}",
            f"{row.active:.0%}",
            _whole_percent(row.model_flops_saved),
            decimals(row.model_speedup, 2),
            *("possible" if row.possible[name] else "no" for name in names),
        ]
        for row in all_bounds
    ]
    return table(header, rows)


def _whole_percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.0%}"


def _millions(count: float | None) -> str:
    return "unknown" if count is None else f"{count / 1e6:.3f}"


def _percent_change(difference: Difference) -> str:
    """Perplexity of the first arm against this one, from the difference the other way round."""
    change = math.exp(-difference.mean) - 1
    return f"{abs(change):.1%} {'below' if change < 0 else 'above'}"


def _text_name(result: ComparisonResult) -> str:
    return "synthetic text" if result.data == "synthetic" else f"`{result.data}`"
