"""`moescope context`: loss and routing by position, beyond the trained length."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from moe_core.cli.options import Parser, command, existing_run, finish, whole
from moe_core.cli.output import Output, progress_on_stderr, table


def parser() -> Parser:
    """Its options."""
    parser = command(
        "context",
        "Held-out text four times as long as the trained length is read whole, under each way to stretch rotary\n"
        "angles (model.rope), on the same weights. Says the loss and the routing at 1, 2 and 4 times that length\n"
        "against reading in windows of it.",
        "context --run demo",
        "context --run demo --factor 2 --json context.json",
    )
    parser.add_argument("--run", metavar="NAME", help="the run to look at (default: the run updated last)")
    parser.add_argument("--factor", metavar="N", type=whole(1, 64), default=4, help="stretch by this (default 4)")
    parser.add_argument("--texts", metavar="N", type=whole(3, 10_000), default=24, help="texts at most (default 24)")
    parser.add_argument("--data", metavar="PATH", help="read this text, as for training, instead of the held-out text")
    return finish(parser, context)


def context(arguments: argparse.Namespace, output: Output) -> int:
    """Print a table of schemes by span, and what it says."""
    run = existing_run(arguments.run)
    from moe_core.data.sources import read_documents
    from moe_core.evaluation.long_context import SPANS, long_context_verdict, long_texts, read_long
    from moe_core.inference.held_out import held_out_text
    from moe_core.inference.scoring import as_dataset
    from moe_core.runs.checkpoint import load_run

    loaded = load_run(run.name)
    length = SPANS[-1][1] * loaded.config.training.seq_len
    if arguments.data is None:
        dataset = held_out_text(run, loaded.tokenizer, arguments.texts * length)
    else:
        dataset = as_dataset(loaded, read_documents(arguments.data))
    texts_NT = long_texts(dataset, length)
    # Evenly spaced, so that every domain is there.
    texts_NT = texts_NT[:: -(-len(texts_NT) // arguments.texts)]
    with progress_on_stderr() as progress:
        found = read_long(loaded, texts_NT, arguments.factor, progress)
    rows = [
        [
            read.scheme,
            f"{span.start} to {span.end - 1}",
            f"{span.nats.value:.3f}",
            f"{span.above_windows.value:+.3f}",
            f"{span.above_windows.low:+.3f} to {span.above_windows.high:+.3f}",
            f"{span.flips.value:.1%}",
            f"{span.busiest:.2f}",
        ]
        for read in found.schemes
        for span in read.spans
    ]
    heads = ["scheme", "positions", "nats", "against windows", "95 % interval", "flips", "busiest"]
    output.say(table(heads, rows))
    for read in found.schemes:
        output.say(
            f"{read.scheme}: NMI of expert with position {read.position_nmi:.4f}, by chance below "
            f"{read.position_nmi_chance:.4f} in 95 of 100 (p = {read.position_p:.2f})"
        )
    verdict = long_context_verdict(found)
    output.say(f"Trained length: {found.trained} tokens; {found.texts} texts of {length}. {verdict}")
    output.figures(
        {"run": run.name, "step": loaded.step, "factor": arguments.factor, **asdict(found), "verdict": verdict}
    )
    return 0
