"""`moescope compare-serving`: how fast a mixture serves, beside a dense model of equal active size."""

from __future__ import annotations

import argparse
from pathlib import Path

from moe_core.cli.options import Parser, command, finish, whole
from moe_core.cli.output import Output, check_regular, progress_on_stderr, table
from moe_core.errors import UsageError
from moe_core.inference.device import DEVICES, DTYPES

DEFAULT = "out/serving/serving.json"


def parser() -> Parser:
    """Its options."""
    parser = command(
        "compare-serving",
        "How fast does a mixture serve, beside a dense model whose tokens pass as many weights? Clients in threads\n"
        "of their own ask both, in turn: tokens a second and time to the first token at 1, 4 and 16 clients, memory,\n"
        "and the held-out loss of what is trained. `demo` is the trained run that comes along, and its dense model\n"
        "has random weights; so has every other size. About half a minute for quick and demo.",
        "compare-serving --model-sizes quick,demo",
        "compare-serving --model-sizes 7b --dtype bfloat16 --output out/serving/7b.json",
    )
    parser.add_argument(
        "--model-sizes", metavar="NAMES", default="quick,demo", help="presets with commas between them, see `presets` "
        "(default quick,demo)",
    )  # fmt: skip
    parser.add_argument("--no-baseline", action="store_true", help="leave the standard (dense) models out")
    parser.add_argument("--no-moe", action="store_true", help="leave the mixtures out")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--cpu", action="store_true", help="compute on the processor even if there is a GPU")
    place.add_argument("--device", choices=DEVICES, default="auto", help="default auto: cuda where present, else cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="precision of the weights (default float32)")
    parser.add_argument(
        "--clients", metavar="N,N", default="1,4,16", help="numbers of clients at once (default 1,4,16)"
    )
    parser.add_argument(
        "--answer-tokens", metavar="N", type=whole(2, 100_000), default=48, help="that each asks for (default 48)"
    )
    parser.add_argument(
        "--rounds", metavar="N", type=whole(2, 1_000), default=9, help="in each, all take turns; fewer "
        "than 9 tell no difference with these numbers of clients (default 9)",
    )  # fmt: skip
    parser.add_argument(
        "--output", metavar="FILE", default=DEFAULT, help=f"the result as JSON (default {DEFAULT}; what is in "
        "out/serving is shown by the dashboard's Compare page)",
    )  # fmt: skip
    return finish(parser, compare_serving)


def compare_serving(arguments: argparse.Namespace, output: Output) -> int:
    """Measure, print the table, and keep the result."""
    check_regular(arguments.output, "--output")
    sizes = tuple(dict.fromkeys(name.strip() for name in arguments.model_sizes.split(",") if name.strip()))
    if not sizes:
        raise UsageError(f"--model-sizes {arguments.model_sizes!r} names no size; expected some such as quick,demo")
    clients = _clients(arguments.clients)
    from moe_core.experiments.serving import Kind, ServingPlan, measure_serving
    from moe_core.experiments.serving_result import HEADER, serving_rows, serving_verdict, where_served, write_serving
    from moe_core.training.repeatability import keep_freed_memory

    kinds: tuple[Kind, ...] = () if arguments.no_baseline else ("dense",)
    plan = ServingPlan(
        sizes,
        kinds if arguments.no_moe else (*kinds, "moe"),
        clients,
        answer_tokens=arguments.answer_tokens,
        rounds=arguments.rounds,
        device="cpu" if arguments.cpu else arguments.device,
        dtype=arguments.dtype,
    )
    plan.check_memory()
    keep_freed_memory()
    with progress_on_stderr() as progress:
        result = measure_serving(plan, progress)
    path = Path(arguments.output)
    write_serving(path, result)
    output.say(table(HEADER, serving_rows(result)))
    output.say()
    output.say(serving_verdict(result))
    output.say(where_served(result))
    output.say(f"Result: {path}")
    output.figures(result.to_json())
    return 0


def _clients(text: str) -> tuple[int, ...]:
    try:
        found = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        found = ()
    if not found or not 1 <= found[0] <= found[-1] <= 256:
        raise UsageError(f"--clients {text[:60]!r}; expected numbers from 1 to 256 with commas between them, as 1,4,16")
    return found
