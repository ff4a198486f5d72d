"""`moescope presets`: the named configurations, what they cost and whether they fit here. Needs no torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moe_core.cli.options import Parser, command, finish
from moe_core.cli.output import Output, table
from moe_core.config.presets import PRESETS, Preset

if TYPE_CHECKING:
    pass


TRAINING = ("float32", "bfloat16 autocast")
NOTES = """\
Parameters are in millions; the embedding, which is the output head too, counts once and as large as asked for: every
vocabulary is learned from the text and may end smaller. Active: those that a token passes. GFLOP: forward pass of one
token that attends to a whole training sequence. Memory is in GiB; training: weights, gradients, optimizer state and the
activations of one batch; serving: weights, and a key/value cache for the whole context. * = more than this machine has
({memory:,.1f} GiB). int8 and int4: matrices of attention and experts, for engines that compute with them; this one does
not."""


def parser() -> Parser:
    """Its options."""
    parser = command(
        "presets",
        "List the named configurations that --preset trains: parameters, operations for a token, and the memory that\n"
        "training and serving take at each precision. docs/presets.md has the formulas and the numbers' sources.",
        "presets",
        "presets --json presets.json",
    )
    return finish(parser, presets)


def presets(arguments: argparse.Namespace, output: Output) -> int:  # noqa: ARG001 - every handler has this signature
    """Print a table of sizes, one of memory, and what was filled in or left out."""
    from moe_core.model.size import memory_present

    present = memory_present()
    rows = [describe(name) for name in PRESETS]
    output.say(table(SIZE_HEADER, [_size_row(row) for row in rows]) + "\n")
    output.say(table(_memory_header(rows[0]), [_memory_row(row, present) for row in rows]) + "\n")
    output.say(NOTES.format(memory=present / 2**30) + "\n")
    for text in dict.fromkeys(text for preset in PRESETS.values() for text in _notes_of_preset(preset)):
        names = ", ".join(name for name, preset in PRESETS.items() if text in _notes_of_preset(preset))
        output.say(f"{names}: {text}")
    output.figures({"memory_bytes": present, "presets": rows})
    return 0


def describe(name: str) -> dict[str, Any]:
    """Size, cost and memory of a preset as JSON values; parameters are counts, memory is in bytes."""
    from moe_core.config import load_config
    from moe_core.model import size

    config = load_config(name, environment={})
    model, training = config.model, config.training
    total, active = size.total_parameters(model), size.active_parameters(model)
    embedding = size.embedding_parameters(model)
    return {
        "name": name,
        "about": PRESETS[name].about,
        "chosen": PRESETS[name].chosen,
        "differs": PRESETS[name].differs,
        "layers": model.num_layers,
        "moe_layers": len(model.moe_layers),
        "dim": model.dim,
        "experts": model.num_experts if model.moe_layers else None,
        "top_k": model.top_k if model.moe_layers else None,
        "vocab_size": model.vocab_size,
        "context": model.max_seq_len,
        "parameters": {
            "total": total,
            "active": active,
            "total_without_embedding": total - embedding,
            "active_without_embedding": active - embedding,
        },
        "flops_per_token": size.flops_per_token(model, training.seq_len),
        "batch": [training.batch_size, training.seq_len],
        "optimizer": training.optimizer,
        "training_bytes": {
            precision: vars(size.training_memory(config, autocast=precision != "float32")) for precision in TRAINING
        },
        "serving_bytes": {
            precision: vars(memory) | {"total": memory.total}
            for precision in size.SERVING_PRECISIONS
            for memory in (size.serving_memory(model, precision),)
        },
    }


def _notes_of_preset(preset: Preset) -> list[str]:
    notes = {"its document leaves open, chosen here": preset.chosen, "different here": preset.differs}
    return [f"{what}: {text}." for what, text in notes.items() if text]


SIZE_HEADER = (
    "preset", "layers", "wide", "experts", "total", "active", "without embedding", "active", "GFLOP/token", ""
)  # fmt: skip


def _size_row(row: dict[str, Any]) -> Sequence[str]:
    experts = "dense" if not row["moe_layers"] else f"{row['top_k']} of {row['experts']}"
    if 0 < row["moe_layers"] < row["layers"]:
        experts += f" in {row['moe_layers']} layers"
    counts = (f"{count / 1e6:,.2f}" for count in row["parameters"].values())
    return (
        row["name"], str(row["layers"]), str(row["dim"]), experts, *counts, f"{row['flops_per_token'] / 1e9:,.3f}",
        row["about"],
    )  # fmt: skip


def _memory_header(row: dict[str, Any]) -> Sequence[str]:
    training = (f"train {precision}" for precision in row["training_bytes"])
    return ("preset", "batch", "optimizer", *training, *(f"serve {precision}" for precision in row["serving_bytes"]))


def _memory_row(row: dict[str, Any], present: int) -> Sequence[str]:
    totals = [memory["total"] for kind in ("training_bytes", "serving_bytes") for memory in row[kind].values()]
    cells = (f"{total / 2**30:,.2f}{'*' if total > present else ''}" for total in totals)
    return (row["name"], " x ".join(map(str, row["batch"])), row["optimizer"], *cells)
