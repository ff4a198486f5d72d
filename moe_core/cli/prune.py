"""`moescope prune`: which experts to keep, a run with these alone, and what that costs."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from moe_core.ablation_modes import CRITERIA
from moe_core.cli.options import Parser, add_device, command, existing_run, finish, whole
from moe_core.cli.output import Output, check_writable, progress_on_stderr
from moe_core.cli.prune_words import say_costs, say_list, say_speed
from moe_core.errors import UsageError
from moe_core.program import program
from moe_core.words import duration

if TYPE_CHECKING:
    from moe_core.evaluation.pruning_text import PruningText
    from moe_core.inference.protocol import LanguageModel
    from moe_core.progress import Progress
    from moe_core.routing.measures.keep_list import KeepList
    from moe_core.runs.checkpoint import LoadedRun
    from moe_core.runs.folder import RunFolder


def parser() -> Parser:
    """Its options."""
    parser = command(
        "prune",
        "Say which experts of each layer to keep, and of which of them the text cannot tell; write a new run with\n"
        "these alone. Its logits are first compared with those of the whole run with the other experts masked. What\n"
        "it costs is told on text that did not choose the experts, beside the costs of choosing by load and at random.",
        "prune --run demo --keep 6 --as demo-6",
        "prune --run demo --keep 4 --by load --domain legal --as demo-legal --json pruned.json",
        "prune --run demo --keep 6 --list keep.json       # the list alone",
        "prune trace.parquet --keep 48 --list keep.json   # by load, of a trace or counts",
        "prune --run demo --keep-list keep.json --as demo-6",
        "prune --model DIR --keep 48 --to DIR2 --data texts.jsonl",
    )
    parser.add_argument(
        "file", metavar="FILE", nargs="?", help="a trace, counts or a recording: the list alone, by load"
    )
    parser.add_argument("--run", metavar="NAME", help="run to prune, which stays as it is")
    parser.add_argument("--model", metavar="DIR", help="a model of the transformers library instead, with --to")
    parser.add_argument(
        "--to", metavar="DIR2", help="with --model: folder for the pruned model, which must not be there"
    )
    parser.add_argument(
        "--data", metavar="PATH", help="with --model: text that chooses and, other sources of it, scores (default: "
        "generated)",
    )  # fmt: skip
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--keep", metavar="N", type=whole(1, 999_999), help="experts that stay in each layer, at least as many as a "
        "token is sent to",
    )  # fmt: skip
    what.add_argument("--keep-list", metavar="FILE", help="keep those of a list that --list wrote")
    parser.add_argument(
        "--by", choices=CRITERIA, help="which experts stay: those of the highest REAP (weight times output size, "
        "2510.13999; the default of a run), load (of a FILE), effect of each alone, or any (random)",
    )  # fmt: skip
    parser.add_argument("--domain", metavar="NAME", help="by the text of this domain alone (default: all text)")
    parser.add_argument("--as", dest="name", metavar="NEWNAME", help="write the pruned run under this name")
    parser.add_argument(
        "--list", metavar="FILE.json", help="write the list of all experts, with intervals and verdicts"
    )
    add_device(parser)
    return finish(parser, prune)


def prune(arguments: argparse.Namespace, output: Output) -> int:
    """Choose the experts; cut, compare, measure and write where a name is given."""
    _check(arguments)
    if arguments.model is not None:
        from moe_core.cli.prune_models import prune_foreign

        return prune_foreign(arguments, output)
    if arguments.file is not None:
        with progress_on_stderr() as progress:
            return _list_of_file(arguments, output, progress)
    parent = existing_run(arguments.run)
    from moe_core.evaluation.pruning_text import text_of_run
    from moe_core.inference.device import resolve_device
    from moe_core.inference.open import language_model
    from moe_core.runs.checkpoint import load_run

    loaded = load_run(parent.name, device=resolve_device(arguments.device))
    if not loaded.config.model.moe_layers:
        raise UsageError(f"run {parent.name!r} is dense; expected one with experts to take out")
    with progress_on_stderr() as progress:
        text, model = text_of_run(loaded), language_model(loaded)
        lists = _lists(arguments, loaded, model, text, progress)
        say_list(arguments, lists[0], f"run {parent.name}, step {loaded.step}", output)
        figures: dict[str, object] = {"run": parent.name, "step": loaded.step, "list": asdict(lists[0])}
        if arguments.name is not None:
            figures |= _write(arguments, output, loaded, model, text, lists, progress)
    output.figures(figures)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if sum(given is not None for given in (arguments.file, arguments.run, arguments.model)) != 1:
        raise UsageError(
            "give one of --run NAME, --model DIR, or a FILE of routing for the list alone; see `prune --help`"
        )
    if arguments.model is None and (arguments.to is not None or arguments.data is not None):
        raise UsageError("--to and --data go with --model; a run is written with --as, and has text of its own")
    if arguments.model is not None and arguments.name is not None:
        raise UsageError("--as names a run of ours; a model is written with --to DIR2")
    if arguments.file is not None and arguments.name is not None:
        raise UsageError("--as writes a pruned run and needs --run NAME; a FILE of routing has no weights")
    if arguments.file is not None and arguments.keep_list is not None:
        raise UsageError("--keep-list is for --run NAME; a FILE of routing makes a list of its own: give --keep N")
    if arguments.keep_list is not None and (arguments.by is not None or arguments.domain is not None):
        raise UsageError("--keep-list has chosen already and takes neither --by nor --domain; leave them out")
    if arguments.file is not None and arguments.by not in (None, "load"):
        raise UsageError(f"--by {arguments.by} needs the model: give --run NAME; of routing alone, load can be told")
    if arguments.name is None and arguments.to is None and arguments.list is None and arguments.keep_list is not None:
        raise UsageError("--keep-list alone does nothing; add --as NEWNAME, the run to write")
    if arguments.list is not None:
        check_writable(arguments.list, "--list")
    if arguments.name is not None:
        _new_run(arguments.name)


def _new_run(name: str) -> RunFolder:
    from moe_core.runs.folder import RunFolder

    run = RunFolder(name)
    if run.exists():
        raise UsageError(f"--as {name!r} is a run already; expected a new name")
    return run


def _list_of_file(arguments: argparse.Namespace, output: Output, progress: Progress) -> int:
    from moe_core.routing.measures.keep_list import list_by_load
    from moe_core.routing.opening import open_routing

    with tempfile.TemporaryDirectory(prefix="moescope-") as scratch:
        routing = open_routing(arguments.file, convert_to=Path(scratch) / "trace.parquet", progress=progress).routing
        found = list_by_load(routing, arguments.keep, domain=arguments.domain)
    say_list(arguments, found, Path(arguments.file).name, output)
    output.figures({"file": arguments.file, "list": asdict(found)})
    return 0


def _lists(
    arguments: argparse.Namespace, loaded: LoadedRun, model: LanguageModel, text: PruningText, progress: Progress
) -> tuple[KeepList, ...]:
    """The list that decides; after it, where a run is to be written, that by load as something to hold it against."""
    from moe_core.evaluation.keep_lists import keep_lists_of
    from moe_core.exchange.pruned_run import check_kept, refuse_router
    from moe_core.runs.keep_list_file import read_keep_list

    shape = loaded.config.model
    given = read_keep_list(Path(arguments.keep_list)) if arguments.keep_list is not None else None
    if given is not None:
        check_kept(given.kept, shape)
    keep = given.keep if given is not None else arguments.keep
    if not shape.top_k <= keep <= shape.num_experts:
        raise UsageError(
            f"--keep {keep} of {shape.num_experts} experts is out of range; expected {shape.top_k}, which a token is "
            f"sent to, to {shape.num_experts}"
        )
    if arguments.name is not None:
        refuse_router(shape)
        if keep == shape.num_experts:
            raise UsageError(f"--keep {keep} keeps all experts of each layer; expected fewer")
    by = given.by if given is not None else arguments.by or "reap"
    beside = ["load"] if arguments.name is not None and by != "load" else []
    if given is not None:
        made = keep_lists_of(model, text.tuning, beside, keep, progress=progress) if beside else ()  # type: ignore[arg-type]
        return (given, *made)
    made = keep_lists_of(
        model, text.tuning, [by], keep, domain=arguments.domain, run=loaded.run, progress=progress
    )  # fmt: skip
    if not beside:
        return made
    return (*made, *keep_lists_of(model, text.tuning, ["load"], keep, progress=progress))


def _write(
    arguments: argparse.Namespace,
    output: Output,
    loaded: LoadedRun,
    model: LanguageModel,
    text: PruningText,
    lists: Sequence[KeepList],
    progress: Progress,
) -> dict[str, object]:
    """Cut, compare, measure, write, and say all of it."""
    from moe_core.evaluation.keep_lists import random_orders, ranking_of
    from moe_core.evaluation.pruning import ORDERS, CurvePlan, pruning_curves
    from moe_core.exchange.pruned_run import TOLERANCE, prune_model, write_pruned_run
    from moe_core.experiments.pruned_speed import pruned_speed
    from moe_core.model.size import active_parameters, total_parameters
    from moe_core.routing.measures.pruning import pruning_verdict

    began, run = time.perf_counter(), _new_run(arguments.name)
    before, removed = loaded.config.model, loaded.config.model.num_experts - lists[0].keep
    pruned = prune_model(loaded, lists[0].kept)
    rankings = [ranking_of(found, before.top_k) for found in lists if found.by != "random"]
    rankings += random_orders(model, ORDERS)
    plan = CurvePlan(tuple(dict.fromkeys(one.by for one in rankings)), (removed,), (), ORDERS)
    curves = pruning_curves(loaded, text, plan=plan, rankings=rankings, progress=progress).curves
    speed = pruned_speed(loaded.model, pruned.model, text.scored.token_ids, progress)
    write_pruned_run(loaded, pruned, run, progress)
    after = pruned.config.model
    say_costs(curves, lists[0], output)
    output.say(pruning_verdict(curves))
    output.say(
        f"Logits differ from those of the masked run by at most {pruned.difference:.1e} on {pruned.tokens:,} tokens "
        f"of held-out text (refused above {TOLERANCE:g})."
    )
    sizes = {name: count(before) for name, count in (("parameters", total_parameters), ("active", active_parameters))}
    left = {name: count(after) for name, count in (("parameters", total_parameters), ("active", active_parameters))}
    output.say(
        f"Parameters: {left['parameters']:,} of {sizes['parameters']:,}, {4 * left['parameters'] / 2**20:.1f} of "
        f"{4 * sizes['parameters'] / 2**20:.1f} MiB; a token passes {left['active']:,} of {sizes['active']:,}."
    )
    machine = say_speed(speed, output)
    output.say(f"Run {run.name} in {duration(time.perf_counter() - began)}.")
    output.say(f"Next:  {program()} --run {run.name}-tuned --init-from {run.name}   # trains it again for what it lost")
    return {
        "as": run.name, "largest_difference": pruned.difference, "checked_tokens": pruned.tokens,
        "curves": asdict(curves), "before": sizes, "after": left, "speed": [asdict(one) for one in speed],
        "processor": machine.processor, "threads": machine.threads, "load": machine.load_average_before,
        "verdict": pruning_verdict(curves),
    }  # fmt: skip
