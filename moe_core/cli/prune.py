"""`moescope prune`: a run with fewer experts in each layer, and what that costs."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict

from moe_core.ablation_modes import CRITERIA
from moe_core.cli.options import Parser, add_device, command, existing_run, finish, whole
from moe_core.cli.output import Output, progress_on_stderr
from moe_core.errors import UsageError
from moe_core.program import program
from moe_core.words import duration, signed


def parser() -> Parser:
    """Its options."""
    parser = command(
        "prune",
        "Write a new run with fewer experts in each layer, the least needed taken out. Its logits\n"
        "are first compared with those of the whole run with these experts masked. What it costs is\n"
        "told on text that did not choose the experts, beside the costs of choosing by load and at random.",
        "prune --run demo --keep 6 --as demo-6",
        "prune --run demo --keep 4 --by load --as demo-4 --json pruned.json",
    )
    parser.add_argument("--run", metavar="NAME", required=True, help="run to prune, which stays as it is")
    parser.add_argument(
        "--keep", metavar="N", type=whole(1, 999_999), required=True, help="experts that stay in each layer, at least "
        "as many as a token is sent to",
    )  # fmt: skip
    parser.add_argument(
        "--by", choices=CRITERIA, default="reap", help="which experts stay: those of the highest REAP (weight times "
        "output size, 2510.13999; the default), load or effect of each alone, or any (random)",
    )  # fmt: skip
    parser.add_argument("--as", dest="name", metavar="NEWNAME", required=True, help="name of the new run")
    add_device(parser)
    return finish(parser, prune)


def prune(arguments: argparse.Namespace, output: Output) -> int:
    """Choose the experts, cut and compare, measure, write."""
    parent = existing_run(arguments.run)
    from moe_core.evaluation.pruning import ORDERS, CurvePlan, pruning_curves, rankings_of
    from moe_core.evaluation.pruning_text import text_of_run
    from moe_core.exchange.pruned_run import TOLERANCE, prune_model, refuse_router, write_pruned_run
    from moe_core.inference.device import resolve_device
    from moe_core.inference.open import language_model
    from moe_core.model.size import active_parameters, total_parameters
    from moe_core.routing.measures.pruning import BY, pruning_verdict
    from moe_core.runs.checkpoint import load_run
    from moe_core.runs.folder import RunFolder

    run = RunFolder(arguments.name)
    if run.exists():
        raise UsageError(f"--as {arguments.name!r} is a run already; expected a new name")
    began = time.perf_counter()
    loaded = load_run(parent.name, device=resolve_device(arguments.device))
    before, removed = loaded.config.model, loaded.config.model.num_experts - arguments.keep
    if not before.moe_layers:
        raise UsageError(f"run {parent.name!r} is dense; expected one with experts to take out")
    if not before.top_k <= arguments.keep < before.num_experts:
        raise UsageError(
            f"--keep {arguments.keep} of {before.num_experts} experts is out of range; expected {before.top_k}, which "
            f"a token is sent to, to {before.num_experts - 1}"
        )
    refuse_router(before)
    text, model = text_of_run(loaded), language_model(loaded)
    chosen = CurvePlan((arguments.by,), (removed,), (), 1)
    compared = CurvePlan(tuple(by for by in CRITERIA if by in (arguments.by, "load", "random")), (removed,), (), ORDERS)
    with progress_on_stderr() as progress:
        gone = set(rankings_of(model, text.tuning, chosen, run=parent, progress=progress)[0].removed(removed))
        kept = {
            layer: [expert for expert in range(before.num_experts) if (layer, expert) not in gone]
            for layer in before.moe_layers
        }
        pruned = prune_model(loaded, kept)
        curves = pruning_curves(loaded, text, plan=compared, progress=progress).curves
        write_pruned_run(loaded, pruned, run, progress)
    after = pruned.config.model
    for layer, experts in kept.items():
        output.say(f"layer {layer} keeps {', '.join(map(str, experts))}")
    for by in curves.criteria:
        point = curves.at(by)[0]
        output.say(
            f"{BY[by]:<17} loss {signed(point.delta_nats, 4)} nats per token "
            f"({signed(point.low, 4)} to {signed(point.high, 4)})"
        )
    output.say(pruning_verdict(curves))
    output.say(
        f"Logits differ from those of the masked run by at most {pruned.difference:.1e} on {pruned.tokens:,} tokens "
        f"of held-out text (refused above {TOLERANCE:g})."
    )
    output.say(
        f"Parameters: {total_parameters(after):,} of {total_parameters(before):,}; a token passes "
        f"{active_parameters(after):,} of {active_parameters(before):,}."
    )
    output.say(f"Run {run.name} in {duration(time.perf_counter() - began)}.")
    output.say(
        f"Next:  {program()} --run {run.name}-tuned --init-from {run.name} --model.num_experts {after.num_experts}"
    )
    output.figures(
        {
            "run": run.name, "from": parent.name, "step": loaded.step, "by": arguments.by, "keep": kept,
            "largest_difference": pruned.difference, "checked_tokens": pruned.tokens, "curves": asdict(curves),
            "parameters": {"before": total_parameters(before), "after": total_parameters(after)},
            "active_parameters": {"before": active_parameters(before), "after": active_parameters(after)},
            "verdict": pruning_verdict(curves),
        }
    )  # fmt: skip
    return 0
