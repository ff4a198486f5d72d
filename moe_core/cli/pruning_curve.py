"""`moescope ablate --curve`: how many experts can go, by which order, and how many a token needs."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from moe_core.cli.ablate_models import documents_for
from moe_core.cli.models import load_language_model
from moe_core.cli.options import existing_run
from moe_core.cli.output import Output, progress_on_stderr, table
from moe_core.errors import UsageError
from moe_core.words import count_of, duration, signed

if TYPE_CHECKING:
    from moe_core.routing.measures.pruning import PruningCurves


def pruning_curve(arguments: argparse.Namespace, output: Output) -> int:
    """Measure the curves, keep them with a run that read its own text, and say how far one can go."""
    for name in ("layer", "expert"):
        if getattr(arguments, name) is not None:
            raise UsageError(f"--{name} does not go with --curve, which takes as many experts out of every layer")
    if arguments.mode != "zero":
        raise UsageError("--mode does not go with --curve: a token whose experts are gone always chooses again")
    run = existing_run(arguments.run) if arguments.model is None else None
    from moe_core.evaluation.pruning import ORDERS, plan_curves, pruning_curves
    from moe_core.evaluation.pruning_text import split_by_source, text_of_run
    from moe_core.inference.device import resolve_device
    from moe_core.routing.measures.pruning import pruning_verdict, top_k_verdict
    from moe_core.runs.checkpoint import load_run

    if run is not None:
        loaded = load_run(run.name, device=resolve_device(arguments.device))
    else:
        loaded = load_language_model(arguments)  # type: ignore[assignment]
    from moe_core.inference.open import language_model

    model = language_model(loaded)
    plan = plan_curves(model, arguments.by, orders=arguments.orders or ORDERS)
    if run is not None and arguments.data is None:
        text = text_of_run(loaded)
    else:
        text = split_by_source(loaded, *documents_for(model, arguments.data))
    print(f"reading the scored text {count_of(plan.readings, 'time')}", file=sys.stderr)
    keep = run if arguments.data is None else None
    with progress_on_stderr() as progress:
        kept = pruning_curves(loaded, text, plan=plan, run=keep, progress=progress)
    curves, said = kept.curves, [pruning_verdict(kept.curves), top_k_verdict(kept.curves)]
    output.say(_curve_table(curves))
    output.say("Change of loss in nats per token with so many experts left in each layer; ~: its interval holds 0.")
    output.say()
    output.say(_top_k_table(curves))
    output.say()
    for sentence in said:
        output.say(sentence)
    where = f"; kept in {run.path / 'analysis'}" if keep is not None and run is not None else ""
    output.say(
        f"In order by {kept.tuning_tokens:,} tokens, scored on {kept.of.tokens:,} others of {kept.of.text}, in "
        f"{duration(kept.seconds)}{where}"
    )
    named = {"run": run.name} if run is not None else {"model": arguments.model}
    output.figures({**named, **asdict(kept), "verdicts": {"pruning": said[0], "top_k": said[1]}})
    return 0


def _curve_table(curves: PruningCurves) -> str:
    """A row for each number of experts left, a column for each order."""
    names = curves.criteria
    cells = {(point.removed, point.by): point for point in curves.points if point.domain == "all"}
    rows = []
    for removed in sorted({removed for removed, _ in cells}):
        own = [cells[removed, by] for by in names]
        changes = [signed(point.delta_nats, 4) + "~" * (not (point.low > 0 or point.high < 0)) for point in own]
        rows.append([str(removed), str(curves.num_experts - removed), *changes])
    return table(["removed", "left", *names], rows)


def _top_k_table(curves: PruningCurves) -> str:
    total = [point for point in curves.top_k_points if point.domain == "all"]
    return table(
        ["top-k", "change", "interval"],
        [
            [str(point.top_k), signed(point.delta_nats, 4), f"{signed(point.low, 4)} to {signed(point.high, 4)}"]
            for point in total
        ],
    )
