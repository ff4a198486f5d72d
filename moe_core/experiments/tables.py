"""A result as Markdown: made of the JSON alone, so that no figure in it was typed by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from moe_core.config.router import SIGHT_WARNING
from moe_core.experiments.claims import CLAIMED_DENSE_PERPLEXITY, CLAIMED_PERPLEXITY, fewest_experts
from moe_core.experiments.verdicts import difference_words, interval_words, losses_verdict, where_measured
from moe_core.words import short_count, signed

DOMAINS_SHOWN = 6


def result_table(result: Mapping[str, Any]) -> str:
    """The whole page: verdict, losses, cost, speed, and for "dense" what arithmetic leaves of published claims."""
    parts = [
        losses_verdict(result),
        summary_table(result),
        _losses(result),
        notes(result),
        _routing(result) if result["kind"] == "routers" else _cost(result),
        _speed(result) if result["kind"] == "dense" else _where(result),
        _claims(result) if result["kind"] == "dense" else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary_table(result: Mapping[str, Any]) -> str:
    """A line an arm, for docs/results.md: what it costs, its loss with its interval and how fast it is.

    Routers have a column for how they share the work.
    """
    return _routers_summary(result) if result["kind"] == "routers" else _dense_summary(result)


def _dense_summary(result: Mapping[str, Any]) -> str:
    first, tasks = result["arms"][0]["label"], result["speed"]["tasks"] if result["speed"] else {}
    header = ["arm", "parameters (active)", "MFLOPs/token", "nats/token, unseen", f"against {first}", "bits/byte"]
    rows = [
        [
            str(arm["label"]),
            f"{short_count(arm['parameters']['total'])} ({short_count(arm['parameters']['active'])})",
            f"{arm['flops_per_token']['computed'] / 1e6:.2f}",
            f"{arm['scores']['unseen_nats']['mean']:.3f}",
            difference_words(arm["scores"]["unseen_nats"]["difference"]),
            f"{arm['scores']['unseen_bits_per_byte']['mean']:.3f}",
            *(_times(found["arms"].get(arm["name"])) for found in tasks.values()),
        ]
        for arm in result["arms"]
    ]
    return _table([*header, *(f"{task}: times as fast" for task in tasks)], rows)


def _routers_summary(result: Mapping[str, Any]) -> str:
    first, step = result["arms"][0]["label"], result["speed"]["tasks"]["training step"] if result["speed"] else None
    header = [
        "router (balanced by)", "experts/token", "nats/token, unseen", f"against {first}", "MaxVio", "dead experts",
        "domain NMI (99 % of shuffles below)",
    ]  # fmt: skip
    rows = [
        [
            str(arm["label"]),
            f"{arm['routing']['experts_per_token']:.2f}",
            f"{arm['scores']['unseen_nats']['mean']:.3f}",
            difference_words(arm["scores"]["unseen_nats"]["difference"]),
            f"{arm['routing']['max_violation']['mean']:.2f}",
            f"{arm['routing']['dead_experts']:.1f}",
            " ".join([_measured(arm["routing"]["domain_nmi"]), _in_brackets(arm["routing"]["domain_nmi_null_p99"])]),
            *([] if step is None else [_times(step["arms"].get(arm["name"]))]),
        ]
        for arm in result["arms"]
    ]
    return _table([*header, *([] if step is None else ["training step: times as fast"])], rows)


def _in_brackets(value: float | None) -> str:
    return "" if value is None else f"({value:.3f})"


def _times(found: Mapping[str, float] | None) -> str:
    return "cannot" if found is None else f"{found['times']:.2f}"


def _losses(result: Mapping[str, Any]) -> str:
    first = result["arms"][0]["label"]
    domains = list(result["arms"][0]["by_domain"])[:DOMAINS_SHOWN] if result["kind"] == "dense" else []
    header = ["arm", "nats per token, unseen", f"against {first}", "bits per byte", "validation", *map(_cell, domains)]
    rows = [
        [
            str(arm["label"]),
            f"{arm['scores']['unseen_nats']['mean']:.4f}",
            difference_words(arm["scores"]["unseen_nats"]["difference"]),
            " ".join(
                [f"{arm['scores']['unseen_bits_per_byte']['mean']:.4f}", *_with_interval(arm, "unseen_bits_per_byte")]
            ),
            f"{arm['scores']['validation_nats']['mean']:.4f}",
            *(_with_difference(arm["by_domain"][domain]) for domain in domains),
        ]
        for arm in result["arms"]
    ]
    return _table(header, rows)


def _with_interval(arm: Mapping[str, Any], metric: str) -> list[str]:
    """["[+0.0081 (+0.0047 to +0.0121)]"], or nothing for the first arm."""
    difference = arm["scores"][metric]["difference"]
    return [] if difference is None else [f"[{interval_words(difference)}]"]


def _with_difference(score: Mapping[str, Any]) -> str:
    """0.512 (+0.020): a mean and, after the first arm, its difference; ~ where that is not distinguishable from 0."""
    difference = score["difference"]
    if difference is None:
        return f"{score['mean']:.3f}"
    mark = "~" if difference["verdict"] == "not distinguishable" else ""
    return f"{score['mean']:.3f} ({signed(difference['mean'], 3)}{mark})"


def notes(result: Mapping[str, Any]) -> str:
    """How the losses were found, and what they do not say."""
    seeds, edges = len(result["seeds"]), [arm["label"] for arm in result["arms"] if arm["edge"]]
    text = (
        f"Means of {seeds} seeds, {result['tokens']:,} training tokens each, on {_data(result)}; guessing by token "
        f"frequency costs {result['unigram_nats']:.3f} nats. In brackets the 95 % t-interval of the difference over "
        "pairs of equal seeds: what other weights and another order of the text would change, not another corpus."
    )
    if result["tuning_seeds"]:
        text += (
            " Each arm has the best of the same learning rates, by the same unseen text with a seed that is not scored."
        )
    else:
        text += (
            f" All have the same learning rates, found with {result['arms'][0]['label']}; of {len(result['arms']) - 1} "
            "intervals, which are not adjusted for their number, one in twenty leaves out 0 by chance."
        )
    if edges:
        text += f" The best one tried was the lowest or the highest for: {', '.join(edges)}; a wider search might help."
    if any(arm["sees_future"] for arm in result["arms"]):
        text += f" Expert choice: {SIGHT_WARNING[:1].lower()}{SIGHT_WARNING[1:]}"
    return text


def _cost(result: Mapping[str, Any]) -> str:
    header = [
        "arm", "parameters", "active", "without embedding", "active of these", "MFLOPs per token", "by torch's counter",
        "without the head", "learning rate",
    ]  # fmt: skip
    rows = []
    for arm in result["arms"]:
        parameters, flops = arm["parameters"], arm["flops_per_token"]
        rows.append(
            [
                str(arm["label"]),
                *(
                    f"{parameters[key]:,}"
                    for key in ("total", "active", "total_without_embedding", "active_without_embedding")
                ),
                *(f"{flops[key] / 1e6:.3f}" for key in ("computed", "measured", "without_head")),
                f"x {arm['factor']:g}",
            ]
        )
    return _table(header, rows)


def _routing(result: Mapping[str, Any]) -> str:
    header = [
        "arm", "experts a token", "MaxVio, mean", "worst", "dead experts", "domain NMI", "99 % of shuffles below",
        "tokens/s, training", "tokens/s, reading",
    ]  # fmt: skip
    rows = [
        [
            str(arm["label"]),
            f"{arm['routing']['experts_per_token']:.2f}",
            f"{arm['routing']['max_violation']['mean']:.2f}",
            f"{arm['routing']['max_violation']['worst']:.2f}",
            f"{arm['routing']['dead_experts']:.1f}",
            *(_measured(arm["routing"][key]) for key in ("domain_nmi", "domain_nmi_null_p99")),
            *_tokens_per_second(result, arm["name"]),
        ]
        for arm in result["arms"]
    ]
    about = (
        "MaxVio: the busiest expert's load over the mean, less 1 (0 = even), on held-out text; dead experts are those "
        "of all layers together, a mean over seeds."
    )
    return f"{_table(header, rows)}\n\n{about}"


def _measured(value: float | None) -> str:
    """Empty where there is nothing to measure, as domains in a text of one."""
    return "" if value is None else f"{value:.3f}"


def _tokens_per_second(result: Mapping[str, Any], arm: str) -> list[str]:
    """Training and reading."""
    if result["speed"] is None:
        return ["", ""]
    tasks = result["speed"]["tasks"]
    chosen = [tasks["training step"], next(task for name, task in tasks.items() if name.startswith("prefill"))]
    return [f"{task['tokens'] / task['arms'][arm]['seconds']:,.0f}" for task in chosen]


def _where(result: Mapping[str, Any]) -> str:
    return "Times are not measured yet." if result["speed"] is None else where_measured(result["speed"])


def _speed(result: Mapping[str, Any]) -> str:
    speed = result["speed"]
    if speed is None:
        return _where(result)
    rows = []
    for task, found in speed["tasks"].items():
        for arm in result["arms"]:
            times = found["arms"].get(arm["name"])
            if times is None:
                continue
            rows.append(
                [
                    task,
                    str(arm["label"]),
                    f"{1000 * times['seconds']:.2f} ms ({1000 * times['low']:.2f} to {1000 * times['high']:.2f})",
                    f"{found['tokens'] / times['seconds']:,.0f}",
                    f"{times['times']:.2f} ({times['times_low']:.2f} to {times['times_high']:.2f})",
                ]
            )
    first = result["arms"][0]["label"]
    table = _table(["task", "arm", "time (middle 80 %)", "tokens/s", f"times as fast as {first}"], rows)
    return f"{_where(result)}\n\n{table}"


def _claims(result: Mapping[str, Any]) -> str:
    top_k, experts = result["config"]["model"]["top_k"], result["config"]["model"]["num_experts"]
    names = list(result["bounds"][0]["possible"])
    header = [
        "experts", "FLOPs saved at most", "times as fast at most", "active parameters at least", "this shape: saved",
        "times as fast", *names,
    ]  # fmt: skip
    rows = [
        [
            f"**{row['experts']}**" if row["experts"] == experts else str(row["experts"]),
            f"{row['flops_saved']:.0%}",
            f"{row['speedup']:.2f}",
            f"{row['active']:.0%}",
            f"{row['model_flops_saved']:.0%}",
            f"{row['model_speedup']:.2f}",
            *("possible" if row["possible"][name] else "no" for name in names),
        ]
        for row in result["bounds"]
    ]
    least = "; ".join(f"{name}: from {count} experts on" for name, count in fewest_experts(top_k).items())
    about = (
        f"What {top_k} of E experts can save at most against a dense model of equal total size, by arithmetic. "
        f"{least}. "
        "For 4 experts, top-2, none of them can hold: half of the feed-forward work and half of its parameters remain. "
        "The middle columns count this shape's attention, router and head too."
    )
    return f"{about}\n\n{_table(header, rows)}\n\n{_perplexity_claim(result)}"


def _perplexity_claim(result: Mapping[str, Any]) -> str:
    claimed = 1 - CLAIMED_PERPLEXITY / CLAIMED_DENSE_PERPLEXITY
    parts = [
        f"Perplexity {CLAIMED_PERPLEXITY} against {CLAIMED_DENSE_PERPLEXITY} would be {claimed:.1%} lower; no "
        "arithmetic decides that."
    ]
    for arm in result["arms"][1:]:
        difference = arm["scores"]["unseen_nats"]["difference"]
        if difference is not None:
            parts.append(f"Here the mixture's is {_percent_change(difference)} that of {arm['label']}.")
    return " ".join(parts)


def _percent_change(difference: Mapping[str, Any]) -> str:
    """Perplexity of the first arm against this one, from the difference the other way round."""
    change = math.exp(-difference["mean"]) - 1
    return f"{abs(change):.1%} {'below' if change < 0 else 'above'}"


def _data(result: Mapping[str, Any]) -> str:
    return "synthetic text" if result["data"] == "synthetic" else f"`{result['data']}`"


def _cell(text: str) -> str:
    """A name from the user's data, so that it stays one cell of a Markdown table."""
    return " ".join(text.split()).translate({ord(c): f"\\{c}" for c in "\\|<>*_`[]&"})


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
