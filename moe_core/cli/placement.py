"""`moescope placement`: which experts are hot, and on which GPU each belongs."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from moe_core.cli.held_out_routing import held_out_routing
from moe_core.cli.options import Parser, command, existing_run, finish, whole
from moe_core.cli.output import Output, check_writable, progress_on_stderr, table, write_bytes
from moe_core.errors import UsageError
from moe_core.words import percent

if TYPE_CHECKING:
    import pandas as pd

    from moe_core.progress import Progress
    from moe_core.routing import AnyRouting

MOST_LAYERS = 12
"""Tables show so many layers at most, evenly spaced; --json has all."""
CACHES = (4, 8, 16, 32, 64, 128)


def parser() -> Parser:
    """Its options."""
    parser = command(
        "placement",
        "Say how much of the work the busiest experts take, how often a cache of N experts has what is needed, and on\n"
        "which GPU each expert belongs; write that for SGLang or TensorRT-LLM. Placement is by the published balancer\n"
        "(deepseek-ai/EPLB) and is scored on text that it has not seen.",
        "placement trace.parquet",
        "placement all.counts.parquet --gpus 16 --nodes 2 --groups 8 --replicas 144 --to-sglang location.json",
        "placement --run demo --gpus 4 --domain legal --to-tensorrt-llm moe_load_balancer.yaml --json",
    )
    parser.add_argument("file", metavar="FILE", nargs="?", help="a trace, counts or a recording (see `open --help`)")
    parser.add_argument("--run", metavar="NAME", help="a run instead: its held-out text through its newest checkpoint")
    parser.add_argument("--domain", metavar="NAME", help="by the text of this domain alone (default: all text)")
    for option, most, default, text in (
        ("--gpus", 4096, None, "GPUs that share each layer's experts (default 8, or fewer that have two each)"),
        ("--nodes", 4096, 1, "machines that the GPUs are in (default 1)"),
        ("--groups", 4096, 1, "groups of experts that the router chooses from, n_group in the model's configuration "
         "(default 1)"),
        ("--replicas", 65_536, None, "physical experts of a layer, replicas included (default: its experts, rounded up "
         "to a multiple of the GPUs)"),
        ("--model-layers", 4096, None, "hidden layers of the model, dense ones included: for --to-sglang, where layers "
         "without experts follow the last that has some"),
    ):  # fmt: skip
        parser.add_argument(option, metavar="N", type=whole(1, most), default=default, help=text)
    parser.add_argument("--to-sglang", metavar="FILE.json", help="write it for SGLang's --init-expert-location")
    parser.add_argument(
        "--to-tensorrt-llm", metavar="FILE.yaml", help="write it as TensorRT-LLM's moe_load_balancer.yaml"
    )
    return finish(parser, placement)


def placement(arguments: argparse.Namespace, output: Output) -> int:
    """Measure, print the three answers, and write the files that were asked for."""
    if (arguments.file is None) == (arguments.run is None):
        raise UsageError("give a FILE, or --run NAME; see `placement --help`")
    for option, path, ending in (
        ("--to-sglang", arguments.to_sglang, ".json"),
        ("--to-tensorrt-llm", arguments.to_tensorrt_llm, ".yaml"),
    ):
        if path is not None:
            if not path.endswith(ending):
                raise UsageError(f"{option} {path!r} must end in {ending}, by which the engine knows what it is")
            check_writable(path, option)
    run = existing_run(arguments.run) if arguments.run is not None else None
    from moe_core.routing.opening import open_routing

    with progress_on_stderr() as progress, tempfile.TemporaryDirectory(prefix="moescope-") as scratch:
        routing: AnyRouting
        if run is not None:
            routing = held_out_routing(run)(progress)
        else:
            routing = open_routing(
                arguments.file, convert_to=Path(scratch) / "trace.parquet", progress=progress
            ).routing
        return _answer(arguments, output, routing, progress)


def _answer(arguments: argparse.Namespace, output: Output, routing: AnyRouting, progress: Progress) -> int:
    from moe_core.routing.measures.busiest import PARTS, busiest_experts, busiest_verdict, experts_for
    from moe_core.routing.measures.caches import cache_verdict, expert_cache
    from moe_core.routing.measures.capability import TOKENS
    from moe_core.routing.measures.gpu_load import gpu_load, place_experts, placement_verdict, summary
    from moe_core.routing.measures.health import describe_routing, extent_words
    from moe_core.routing.placement.balancer import default_fleet
    from moe_core.routing.placement.engine_files import sglang_json, sglang_options, tensorrt_llm_yaml
    from moe_core.routing.trace.routing_counts import RoutingCounts

    fleet = default_fleet(
        routing.num_experts, arguments.gpus, arguments.nodes, arguments.groups, arguments.replicas
    )  # fmt: skip
    placed = place_experts(routing, fleet, arguments.domain)
    if arguments.to_sglang is not None:
        text = sglang_json(placed, routing.layers, arguments.model_layers)
    busiest = busiest_experts(routing, arguments.domain)
    load = gpu_load(routing, fleet, arguments.domain)
    cache = None if isinstance(routing, RoutingCounts) else expert_cache(routing, progress)
    of = f" Placed by its {arguments.domain} text." if arguments.domain is not None else ""
    output.say(f"{describe_routing(routing)} {extent_words(routing)}.{of}")
    output.say()
    output.say(busiest_verdict(busiest))
    output.say(_coverage_table(busiest, {part: experts_for(busiest, part) for part in PARTS}))
    output.say()
    if cache is None:
        output.say(f"How often a cache has the experts that are needed takes {TOKENS}.")
    else:
        output.say(cache_verdict(cache))
        if arguments.domain is not None:
            output.say("The cache is over all text in its order, whatever the domain.")
        output.say(_cache_table(cache, routing.num_experts))
    output.say()
    output.say(placement_verdict(load))
    output.say(_load_table(load))
    written = {}
    if arguments.to_sglang is not None:
        write_bytes(Path(arguments.to_sglang), text.encode())
        written["sglang"] = arguments.to_sglang
        output.say(f"Start SGLang with:  {sglang_options(placed, arguments.to_sglang)}")
    if arguments.to_tensorrt_llm is not None:
        write_bytes(Path(arguments.to_tensorrt_llm), tensorrt_llm_yaml(placed, routing.layers).encode())
        written["tensorrt_llm"] = arguments.to_tensorrt_llm
        output.say(
            f"Give TensorRT-LLM:  moe_config.load_balancer: {arguments.to_tensorrt_llm}, with --ep_size {fleet.gpus}"
        )
    output.figures(
        {
            "of": arguments.file or arguments.run,
            "domain": arguments.domain,
            "fleet": asdict(fleet),
            "coverage": {"verdict": busiest_verdict(busiest), "layers": busiest.to_dict("records")},
            "cache": None if cache is None else {"verdict": cache_verdict(cache), "layers": cache.to_dict("records")},
            "gpu_load": {
                "verdict": placement_verdict(load),
                "mean": asdict(summary(load)),
                "layers": load.iloc[:-1].to_dict("records"),
            },
            "physical_to_logical_map": {
                str(layer): row for layer, row in zip(routing.layers, placed.physical_to_logical.tolist(), strict=True)
            },
            "written": written,
        }
    )
    return 0


def _shown(layers: list[int]) -> list[int]:
    if len(layers) <= MOST_LAYERS:
        return layers
    return [layers[round(i * (len(layers) - 1) / (MOST_LAYERS - 1))] for i in range(MOST_LAYERS)]


def _coverage_table(frame: pd.DataFrame, needed: dict[float, pd.DataFrame]) -> str:
    even = ", ".join(str(int(one["even"].iloc[0])) for one in needed.values())
    header = ["layer", *(f"experts for {percent(part)}" for part in needed), f"verdict (even: {even})"]
    rows = []
    for layer in _shown(list(dict.fromkeys(frame["layer"]))):
        cells = []
        for one in needed.values():
            row = one[one["layer"] == layer].iloc[0]
            sure = f" ({row['low']:.0f} to {row['high']:.0f})" if row["low"] == row["low"] else ""
            cells.append(f"{row['experts']:.0f}{sure}")
        rows.append([str(layer), *cells, str(frame[frame["layer"] == layer]["verdict"].iloc[0])])
    return table(header, rows)


def _cache_table(frame: pd.DataFrame, experts: int) -> str:
    sizes = [N for N in CACHES if experts > N] or [experts]
    rows = []
    for N in sizes:
        at = frame[frame["experts"] == N]
        means = [percent(float(at[name].mean())) for name in ("lru", "static", "shuffled", "even")]
        rows.append([str(N), *means, f"{percent(at['lru'].min())} to {percent(at['lru'].max())}"])
    return table(["cache of", "used last", "the busiest", "used last, random order", "even", "by layer"], rows)


def _load_table(frame: pd.DataFrame) -> str:
    from moe_core.figures.labels import rows

    shown = _shown([int(layer) for layer in frame["layer"] if layer >= 0])
    lines = []
    for row in rows(frame[frame["layer"].isin([*shown, -1])]):
        figures = (row.before_seen, row.after_seen, row.before, row.after, row.gain)
        values = ["unknown" if value != value else f"{value:.2f}" for value in figures]
        sure = f" ({row.low:.2f} to {row.high:.2f})" if row.low == row.low else ""
        lines.append(["mean" if row.layer < 0 else str(row.layer), *values[:-1], f"{values[-1]}{sure}"])
    header = ["layer", "in order", "placed", "in order, other text", "placed, other text", "better by"]
    return table(header, lines)
