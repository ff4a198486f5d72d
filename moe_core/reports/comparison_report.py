"""A comparison as Markdown: made of its result alone, so that no figure in it was typed by hand."""

from __future__ import annotations

import math

from moe_core.config.router import SIGHT_WARNING
from moe_core.experiments.comparison_result import (
    TRAINING_STEP,
    ArmTimes,
    ComparisonResult,
    Difference,
    Score,
    SpeedResult,
)
from moe_core.experiments.published_claims import CLAIMED_DENSE_PERPLEXITY, CLAIMED_PERPLEXITY, fewest_experts
from moe_core.experiments.verdicts import decimals, difference_words, interval_words, losses_verdict, where_measured
from moe_core.reports.markdown import escape, render, table
from moe_core.words import short_count, signed

DOMAINS_SHOWN = 6


def result_table(result: ComparisonResult) -> str:
    """The whole page: verdict, losses, cost, speed, and for "dense" what arithmetic leaves of published claims."""
    dense = result.kind == "dense"
    return render(
        "comparison.md.j2",
        result=result,
        dense=dense,
        verdict=losses_verdict(result),
        summary=summary_table(result),
        losses=_losses_table(result),
        notes=notes(result),
        details=_cost_table(result) if dense else _routing_table(result),
        timed=None if result.speed is None else where_measured(result.speed),
        times=_times_table(result.speed, result) if dense and result.speed is not None else "",
        bounds=_bounds_table(result) if dense else "",
        fewest=fewest_experts(result.config.model.top_k),
        claimed=(CLAIMED_PERPLEXITY, CLAIMED_DENSE_PERPLEXITY),
        perplexities=[
            (arm.label, _percent_change(arm.scores.unseen_nats.difference))
            for arm in result.arms[1:]
            if arm.scores.unseen_nats.difference is not None
        ],
    )


def summary_table(result: ComparisonResult) -> str:
    """A line an arm, for docs/results.md: what it costs, its loss with its interval and how fast it is.

    Routers have a column for how they share the work.
    """
    return _routers_summary(result) if result.kind == "routers" else _dense_summary(result)


def _dense_summary(result: ComparisonResult) -> str:
    first, tasks = result.arms[0].label, result.speed.tasks if result.speed else {}
    header = ["arm", "parameters (active)", "MFLOPs/token", "nats/token, unseen", f"against {first}", "bits/byte"]
    rows = [
        [
            arm.label,
            f"{short_count(arm.parameters.total)} ({short_count(arm.parameters.active)})",
            f"{arm.flops_per_token.computed / 1e6:.2f}",
            decimals(arm.scores.unseen_nats.mean, 3),
            difference_words(arm.scores.unseen_nats.difference),
            decimals(arm.scores.unseen_bits_per_byte.mean, 3),
            *(_times_as_fast(found.arms.get(arm.name)) for found in tasks.values()),
        ]
        for arm in result.arms
    ]
    return table([*header, *(f"{task}: times as fast" for task in tasks)], rows)


def _routers_summary(result: ComparisonResult) -> str:
    first, step = result.arms[0].label, result.speed.tasks[TRAINING_STEP] if result.speed else None
    header = [
        "router (balanced by)", "experts/token", "nats/token, unseen", f"against {first}", "MaxVio", "dead experts",
        "domain NMI (99 % of shuffles below)",
    ]  # fmt: skip
    rows = [
        [
            arm.label,
            decimals(arm.mixture_routing().experts_per_token, 2),
            decimals(arm.scores.unseen_nats.mean, 3),
            difference_words(arm.scores.unseen_nats.difference),
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
    domains = list(result.arms[0].by_domain)[:DOMAINS_SHOWN] if result.kind == "dense" else []
    header = [
        "arm",
        "nats per token, unseen",
        f"against {first}",
        "bits per byte",
        "validation",
        *map(escape, domains),
    ]
    rows = [
        [
            arm.label,
            decimals(arm.scores.unseen_nats.mean, 4),
            difference_words(arm.scores.unseen_nats.difference),
            " ".join(
                [
                    decimals(arm.scores.unseen_bits_per_byte.mean, 4),
                    *_interval_in_brackets(arm.scores.unseen_bits_per_byte),
                ]
            ),
            decimals(arm.scores.validation_nats.mean, 4),
            *(_with_difference(arm.by_domain[domain]) for domain in domains),
        ]
        for arm in result.arms
    ]
    return table(header, rows)


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
    seeds, edges = len(result.seeds), [arm.label for arm in result.arms if arm.edge]
    text = (
        f"Means of {seeds} seeds, {result.tokens:,} training tokens each, on {_text_name(result)}; guessing by token "
        f"frequency costs {result.unigram_nats:.3f} nats. In brackets the 95 % t-interval of the difference over "
        "pairs of equal seeds: what other weights and another order of the text would change, not another corpus."
    )
    if result.tuning_seeds:
        text += (
            " Each arm has the best of the same learning rates, by the same unseen text with a seed that is not scored."
        )
    else:
        text += (
            f" All have the same learning rates, found with {result.arms[0].label}; of {len(result.arms) - 1} "
            "intervals, which are not adjusted for their number, one in twenty leaves out 0 by chance."
        )
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
