"""`moescope ablate`: what a run loses without each of its experts."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from moe_core.ablation_modes import CRITERIA, MODES
from moe_core.cli.ablate_heads import ablate_heads
from moe_core.cli.ablate_models import ablate_model
from moe_core.cli.ablate_tables import effects_table, interval, say_what_was_read, text_of
from moe_core.cli.options import Parser, add_model, command, existing_run, finish, whole
from moe_core.cli.output import Output, progress_on_stderr, table
from moe_core.cli.pruning_curve import pruning_curve
from moe_core.errors import UsageError
from moe_core.words import signed

if TYPE_CHECKING:
    import pandas as pd

    from moe_core.runs.checkpoint import LoadedRun


def parser() -> Parser:
    """Its options."""
    parser = command(
        "ablate",
        "Switch experts off one by one and measure the loss on each domain. The whole map also says whether anything\n"
        "observed predicts which experts matter. Results are kept in the run's folder: repeat the command to\n"
        "continue after an interruption.",
        "ablate --run demo",
        "ablate --run demo --layer 2 --expert 5 --mode reroute",
        "ablate --run demo --heads",
        "ablate --run demo --curve",
        "ablate --run demo --curve --by reap --by random --orders 3 --json curves.json",
        "ablate --model path/to/mixtral --layer 3 --mode reroute --data documents/",
        "ablate --model path/to/mixtral --curve",
    )
    add_model(parser, "is examined")
    parser.add_argument("--layer", metavar="L", type=whole(0, 999_999), help="only this layer, counted from 0")
    parser.add_argument("--expert", metavar="E", type=whole(0, 999_999), help="only this expert of --layer")
    parser.add_argument(
        "--mode", choices=MODES, default="zero", help="what the expert leaves behind: nothing (zero, the "
        "default), the same total weight on the token's other experts (renormalise), or another choice (reroute)",
    )  # fmt: skip
    parser.add_argument(
        "--heads", action="store_true", help="mask attention heads one by one instead of experts, in every layer or in "
        "--layer: what the run loses without each (1905.10650), on the same text and as surely",
    )  # fmt: skip
    parser.add_argument(
        "--data", metavar="PATH", help="read this text, a file or folder of documents as for training, instead of the "
        "run's held-out text (of a --model: instead of generated text in four domains): at most 2048 tokens of each "
        "domain, always from the same documents",
    )  # fmt: skip
    curve = parser.add_argument_group("--curve", "how many experts can go?")
    curve.add_argument(
        "--curve", action="store_true", help="loss against the number of experts taken out of each layer, the least "
        "needed first, and against the number of experts for each token; orders are made on other text than is scored",
    )  # fmt: skip
    curve.add_argument(
        "--by", choices=CRITERIA, action="append", help="in which order experts go, repeatable: by REAP (weight times "
        "output size, 2510.13999), by load, by the effect of each alone, at random (default all; effect is left out "
        "over 512 experts, as it reads the text once for each)",
    )  # fmt: skip
    curve.add_argument("--orders", metavar="N", type=whole(2, 1000), default=None, help="random orders (default 5)")
    return finish(parser, ablate)


def ablate(arguments: argparse.Namespace, output: Output) -> int:
    """Switch experts off one by one: the whole map with its correlations, one layer, or one expert."""
    if arguments.expert is not None and arguments.layer is None:
        raise UsageError(f"--expert {arguments.expert} needs --layer: every layer has an expert of that number")
    if arguments.heads:
        return ablate_heads(arguments, output)
    if arguments.curve:
        return pruning_curve(arguments, output)
    if arguments.by or arguments.orders:
        raise UsageError(f"--{'by' if arguments.by else 'orders'} goes with --curve, which it is about")
    if arguments.model is not None:
        return ablate_model(arguments, output)
    run = existing_run(arguments.run)
    from moe_core.inference.device import resolve_device
    from moe_core.routing.measures.causes import ablation_verdict, importance_verdict
    from moe_core.runs.checkpoint import load_run

    began = time.perf_counter()
    loaded = load_run(run.name, device=resolve_device(arguments.device))
    result = _whole_map(loaded, arguments) if arguments.layer is None else _tables_of_part(loaded, arguments)
    effects: pd.DataFrame = result["effects"]
    said = {"ablation": ablation_verdict(effects)}
    output.say(effects_table(effects))
    output.say(
        "Change of loss in nats per token (with its 95 % interval) when the expert is off; ~ behind a domain's: "
        "0 is possible too."
    )
    if "correlations" in result:
        said["importance"] = importance_verdict(result["correlations"])
        output.say()
        output.say(_correlations_table(result["correlations"]))
        output.say("rho: rank correlation with the change of loss within a layer; pooled: over all experts.")
    output.say()
    for sentence in said.values():
        output.say(sentence)
    output.figures(
        {
            **say_what_was_read(effects, loaded, time.perf_counter() - began, output),
            "mode": arguments.mode,
            **{name: frame.to_dict("records") for name, frame in result.items()},
            "verdicts": said,
        }
    )
    return 0


def _whole_map(loaded: LoadedRun, arguments: argparse.Namespace) -> dict[str, pd.DataFrame]:
    from moe_core.evaluation.analysis import analyse_run

    with progress_on_stderr() as progress:
        found = analyse_run(loaded, **text_of(loaded, arguments), mode=arguments.mode, progress=progress)
    return {"effects": found.effects, "importance": found.importance, "correlations": found.correlations}


def _tables_of_part(loaded: LoadedRun, arguments: argparse.Namespace) -> dict[str, pd.DataFrame]:
    from moe_core.evaluation.ablation import ablation_map

    with progress_on_stderr() as progress:
        effects = ablation_map(
            loaded,
            **text_of(loaded, arguments),
            mode=arguments.mode,
            layers=[arguments.layer],
            experts=None if arguments.expert is None else [arguments.expert],
            run=loaded.run,
            progress=progress,
        )
    return {"effects": effects}


def _correlations_table(correlations: pd.DataFrame) -> str:
    rows = [
        [row["measure"], signed(row["rho"], 2), interval(row, 2), signed(row["rho_pooled"], 2), row["verdict"]]
        for row in correlations.to_dict("records")
    ]
    return table(["measure", "rho", "interval", "pooled", "verdict"], rows)
