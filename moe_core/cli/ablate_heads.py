"""`moescope ablate --heads`: what a run loses without each of its attention heads."""

from __future__ import annotations

import argparse
import time

from moe_core.cli.ablate_tables import effects_table, say_what_was_read, text_of
from moe_core.cli.options import existing_run
from moe_core.cli.output import Output, progress_on_stderr
from moe_core.errors import UsageError


def ablate_heads(arguments: argparse.Namespace, output: Output) -> int:
    """Mask heads one by one, all or those of --layer; each is kept in the run's folder."""
    others = ("model", "expert", "curve", "by", "orders")
    if given := next((name for name in others if getattr(arguments, name) not in (None, False)), None):
        raise UsageError(f"--{given} and --heads were both given; heads are masked one by one, of a run: leave it out")
    if arguments.mode != "zero":
        raise UsageError(f"--mode {arguments.mode} is of experts: a masked head adds nothing; leave --mode out")
    run = existing_run(arguments.run)
    from moe_core.evaluation.heads import head_effects
    from moe_core.inference.device import resolve_device
    from moe_core.routing.measures.causes import ablation_verdict, heads_beside_experts
    from moe_core.runs.analysis import read_ablation_map
    from moe_core.runs.checkpoint import load_run

    began = time.perf_counter()
    loaded = load_run(run.name, device=resolve_device(arguments.device))
    layers = None if arguments.layer is None else [arguments.layer]
    with progress_on_stderr() as progress:
        effects = head_effects(loaded, **text_of(loaded, arguments), layers=layers, progress=progress)
    experts = read_ablation_map(run, text=effects.attrs["text"])
    said = [ablation_verdict(effects, "head"), heads_beside_experts(effects, experts)]
    output.say(effects_table(effects, "head"))
    output.say(
        "Change of loss in nats per token (with its 95 % interval) when the head is masked; ~ behind a domain's: 0 is "
        "possible too."
    )
    for sentence in filter(None, said):
        output.say(sentence)
    output.figures(
        {
            **say_what_was_read(effects, loaded, time.perf_counter() - began, output),
            "effects": effects.to_dict("records"),
            "verdict": " ".join(filter(None, said)),
        }
    )
    return 0
