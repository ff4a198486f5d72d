"""What `prune` says of a list and of what it costs, whatever the model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moe_core.cli.output import Output, table
from moe_core.words import signed

if TYPE_CHECKING:
    from moe_core.experiments.pruned_speed import PrunedSpeed
    from moe_core.experiments.speed_result import Environment
    from moe_core.routing.measures.keep_list import KeepList
    from moe_core.routing.measures.pruning import PruningCurves

MOST_LISTED = 64
"""Experts that the table shows; --list has all."""


def say_list(arguments: argparse.Namespace, found: KeepList, of: str, output: Output) -> None:
    """The experts that stay, the table where it is short, the verdict; --list written. `of`: what it was made of."""
    from moe_core.routing.measures.keep_list import keep_list_verdict
    from moe_core.runs.keep_list_file import write_keep_list

    for layer, experts in found.kept.items():
        output.say(f"layer {layer} keeps {', '.join(map(str, experts))}")
    if len(found.experts) <= MOST_LISTED and found.by != "random":
        rows = [
            [
                str(one.layer), str(one.expert), "keep" if one.keep else "drop", _figure(one.score),
                f"{_figure(one.low)} to {_figure(one.high)}", one.verdict if one.verdict == "unknown" else "surely",
            ]
            for one in found.experts
        ]  # fmt: skip
        output.say()
        output.say(table(["layer", "expert", "", "score", "interval", "verdict"], rows))
    output.say(keep_list_verdict(found))
    if arguments.list is not None:
        write_keep_list(Path(arguments.list), found, of)
        output.say(f"List: {arguments.list}")


def _figure(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"


def say_costs(curves: PruningCurves, chosen: KeepList, output: Output) -> None:
    """The loss of this list beside those by load and at random."""
    from moe_core.routing.measures.pruning import BY

    output.say()
    output.say(f"Loss {curves.loss_nats:.4f} nats per token with all experts; with these alone")
    for by in curves.criteria:
        point = curves.at(by)[0]
        own = "  <- this list" if by == chosen.by else ""
        if by == "random":
            own = f"  mean of {curves.orders} draws, {signed(point.lowest, 4)} to {signed(point.highest, 4)}"
            own += "; the first is written" if chosen.by == "random" else ""
        output.say(
            f"  {BY[by]:<17} {signed(point.delta_nats, 4)} ({signed(point.low, 4)} to {signed(point.high, 4)}){own}"
        )


def say_speed(speed: Sequence[PrunedSpeed], output: Output) -> Environment:
    """How many times as fast it is, with the machine, which is given back."""
    import torch

    from moe_core.experiments.machine import environment

    for one in speed:
        spread = one.times_faster
        output.say(f"{one.task}: {spread.median:.2f} times as fast ({spread.low:.2f} to {spread.high:.2f})")
    machine = environment(torch.get_num_threads())
    output.say(
        f"Timed in turn on {machine.processor}, {machine.threads} threads, load {machine.load_average_before:g}."
    )
    return machine
