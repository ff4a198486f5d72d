"""`moescope prune --model`: a model of the transformers library with fewer experts in each layer."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from moe_core.cli.ablate_models import documents_for
from moe_core.cli.output import Output, progress_on_stderr
from moe_core.cli.prune_words import say_costs, say_list, say_speed
from moe_core.errors import UsageError
from moe_core.words import duration, signed

if TYPE_CHECKING:
    from moe_core.data.tokens import TokenDataset
    from moe_core.inference.protocol import LanguageModel
    from moe_core.progress import Progress


def prune_foreign(arguments: argparse.Namespace, output: Output) -> int:
    """Choose the experts; with --to cut, compare, measure and write."""
    source, target = Path(arguments.model), None if arguments.to is None else Path(arguments.to)
    if target is not None and target.exists():
        raise UsageError(f"--to {arguments.to!r} exists already; choose another folder, or remove it")
    from moe_core.evaluation.keep_lists import keep_lists_of, random_orders, ranking_of
    from moe_core.evaluation.pruning import ORDERS, CurvePlan, pruning_curves
    from moe_core.evaluation.pruning_text import split_by_source
    from moe_core.inference.open import open_huggingface
    from moe_core.routing.measures.pruning import pruning_verdict
    from moe_core.runs.keep_list_file import read_keep_list

    began = time.perf_counter()
    model = open_huggingface(arguments.model, device=arguments.device)
    text = split_by_source(model, *documents_for(model, arguments.data))
    given = None if arguments.keep_list is None else read_keep_list(Path(arguments.keep_list))
    keep = given.keep if given is not None else arguments.keep
    if not model.top_k <= keep < model.num_experts:
        raise UsageError(
            f"--keep {keep} of {model.num_experts} experts is out of range; expected {model.top_k}, which a token is "
            f"sent to, to {model.num_experts - 1}"
        )
    with progress_on_stderr() as progress:
        lists = (given,) if given is not None else keep_lists_of(
            model, text.tuning, [arguments.by or "reap"], keep, domain=arguments.domain, progress=progress
        )  # fmt: skip
        found = lists[0]
        if sorted(found.kept) != sorted(model.moe_layers) or found.num_experts != model.num_experts:
            raise UsageError(
                f"the keep list is of layers {sorted(found.kept)} with {found.num_experts} experts; expected layers "
                f"{list(model.moe_layers)} with {model.num_experts}"
            )
        say_list(arguments, found, model.name, output)
        figures: dict[str, object] = {"model": arguments.model, "list": asdict(found)}
        if target is None:
            output.figures(figures)
            return 0
        if found.by not in ("load", "random"):
            lists = (*lists, *keep_lists_of(model, text.tuning, ["load"], keep, progress=progress))
        rankings = [ranking_of(one, model.top_k) for one in lists if one.by != "random"]
        rankings += random_orders(model, ORDERS)
        plan = CurvePlan(
            tuple(dict.fromkeys(one.by for one in rankings)), (model.num_experts - keep,), (), ORDERS
        )  # fmt: skip
        curves = pruning_curves(model, text, plan=plan, rankings=rankings, progress=progress).curves
        say_costs(curves, found, output)
        output.say(pruning_verdict(curves))
        figures |= _cut_and_write(model, found.kept, source, target, text.scored, output, progress)
    output.say(f"{target} in {duration(time.perf_counter() - began)}.")
    figures |= {"to": str(target), "curves": asdict(curves), "verdict": pruning_verdict(curves)}
    output.figures(figures)
    return 0


def _cut_and_write(
    model: LanguageModel,
    kept: dict[int, list[int]],
    source: Path,
    target: Path,
    scored: TokenDataset,
    output: Output,
    progress: Progress,
) -> dict[str, object]:
    from moe_core.evaluation.pruned_loss import paired_loss
    from moe_core.exchange.pruned_model import checked_passages, prune_model, save_pruned_model
    from moe_core.experiments.pruned_speed import pruned_reading_speed
    from moe_core.inference.open import open_huggingface

    pruned = prune_model(
        model.model, kept, model.num_experts, checked_passages(scored, model.context_window, model.device)
    )
    output.say(
        "Logits differ from those of the model whose routers cannot choose the others by at most "
        f"{pruned.difference:.1e} on {pruned.tokens:,} tokens, in float32 (refused above {pruned.tolerance:.1e})."
    )
    save_pruned_model(pruned, source, target)
    again = open_huggingface(str(target), device=model.device.type)
    loss = paired_loss(model, again, scored, progress)
    output.say(
        f"As written and opened again: loss {loss.before:.4f} {signed(loss.change, 4)} ({signed(loss.low, 4)} to "
        f"{signed(loss.high, 4)}) nats per token on {loss.tokens:,} tokens."
    )
    speed = pruned_reading_speed(model, again, scored.token_ids, progress)
    machine = say_speed([speed], output)
    sizes = [sum(path.stat().st_size for path in folder.glob("*.safetensors")) for folder in (source, target)]
    counts = [sum(one.numel() for one in each.model.parameters()) for each in (model, again)]
    output.say(
        f"Parameters: {counts[1]:,} of {counts[0]:,}; weights on disk {sizes[1] / 2**20:.1f} of {sizes[0] / 2**20:.1f} "
        f"MiB; a token passes {again.active_parameters:,} of {model.active_parameters:,}."
    )
    return {
        "largest_difference": pruned.difference, "checked_tokens": pruned.tokens, "loss": asdict(loss),
        "speed": [asdict(speed)], "processor": machine.processor, "threads": machine.threads,
        "parameters": counts, "bytes": sizes, "active_parameters": [model.active_parameters, again.active_parameters],
    }  # fmt: skip
