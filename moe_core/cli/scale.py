"""`moescope scale`: what each process of a large training would keep and send, on paper."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from moe_core.cli.options import Parser, command, finish, whole
from moe_core.cli.output import Output, table
from moe_core.config.presets import PRESETS
from moe_core.errors import UsageError

if TYPE_CHECKING:
    from moe_core.config import Config
    from moe_core.config.parallel import ParallelConfig
    from moe_core.training.parallel.footprint import RankMemory, RankTraffic

SHOWN = 4
"""Layouts of each preset and number of GPUs, those that send least among those that fit."""
NOTE = """\
One sequence a process, bfloat16 autocast, AdamW in float32. Keeps: weights, gradients, optimizer, the block at hand and
activations. Sends: bytes that each process sends in a step, by ring algorithms; tokens as if all experts were wanted
alike. Computed, not run: docs/scale.md says how it was checked."""


def parser() -> Parser:
    """Its options."""
    parser = command(
        "scale",
        "For a preset on so many GPUs: which layouts of processes fit, what each process keeps in memory and what it\n"
        "sends in a step. Nothing is allocated. docs/scale.md has the formulas, docs/parallel.md how to start one.",
        "scale --preset 7b-moe --gpus 8",
        "scale --preset 40b-moe --gpus 64 --gpus 512 --gpu-memory 141 --json scale.json",
    )
    parser.add_argument(
        "--preset", metavar="NAME", choices=PRESETS, action="append", help="repeatable (default: 7b-moe and 40b-moe)"
    )
    parser.add_argument(
        "--gpus", metavar="N", type=whole(1, 100_000), action="append", help="repeatable (default: 8, 64 and 512)"
    )
    parser.add_argument(
        "--gpu-memory", metavar="GIB", type=whole(1, 10_000), default=80, help="of one GPU, in GiB (default 80)"
    )
    return finish(parser, scale)


def scale(arguments: argparse.Namespace, output: Output) -> int:
    """Print the layouts that fit, for each preset and number of GPUs."""
    from moe_core.config import load_config

    rows, figures = [], []
    for preset in arguments.preset or ["7b-moe", "40b-moe"]:
        for gpus in arguments.gpus or [8, 64, 512]:
            config = _one_sequence_each(load_config(preset, environment={}), gpus)
            fitting = _fitting(config, gpus, arguments.gpu_memory * 2**30)
            if not fitting:
                rows.append([preset, f"{gpus:,}", "none fits", *["-"] * 6])
            for layout, memory, traffic in fitting[:SHOWN]:
                rows.append([preset, f"{gpus:,}", str(layout), *_cells(memory, traffic)])
                figures.append(
                    {
                        "preset": preset, "gpus": gpus, "layout": layout.model_dump(),
                        "memory_bytes": asdict(memory) | {"total": memory.total},
                        "sent_bytes": asdict(traffic) | {"total": traffic.total},
                    }
                )  # fmt: skip
    header = ["preset", "GPUs", "layout", "keeps GiB", "of it activations", "sends GiB", "data", "shard", "expert"]
    output.say(table(header, rows))
    output.say(NOTE)
    output.figures({"gpu_memory_bytes": arguments.gpu_memory * 2**30, "layouts": figures})
    return 0


def _one_sequence_each(config: Config, gpus: int) -> Config:
    training = config.training.model_copy(update={"batch_size": gpus, "gradient_accumulation": 1})
    return config.model_copy(update={"training": training})


def _fitting(config: Config, gpus: int, memory_of_gpu: int) -> list[tuple[ParallelConfig, RankMemory, RankTraffic]]:
    """Layouts of so many processes that fit, the one that sends least first. Raises UsageError for a dense preset."""
    from moe_core.training.parallel.footprint import rank_memory, rank_traffic

    if not config.model.moe_layers:
        raise UsageError("scale lays out mixtures of experts; expected a preset with experts, such as 7b-moe")
    found = [
        (layout, memory, rank_traffic(config, layout))
        for layout in _layouts(gpus, config.model.num_experts)
        if (memory := rank_memory(config, layout, autocast=True)).total <= memory_of_gpu
    ]
    return sorted(found, key=lambda one: one[2].total)


def _layouts(gpus: int, experts: int) -> Iterator[ParallelConfig]:
    """Products of data, shard and expert; heads are not divided, which only pays where a model is wider than a node."""
    from moe_core.config.parallel import ParallelConfig

    for expert in (n for n in range(1, min(gpus, experts) + 1) if gpus % n == 0 and experts % n == 0):
        rest = gpus // expert
        for shard in (n for n in range(1, rest + 1) if rest % n == 0):
            yield ParallelConfig(data=rest // shard, shard=shard, expert=expert)


def _cells(memory: RankMemory, traffic: RankTraffic) -> list[str]:
    return [
        f"{value / 2**30:,.1f}"
        for value in (
            memory.total, memory.activations, traffic.total, traffic.data, traffic.shard, traffic.expert,
        )
    ]  # fmt: skip
