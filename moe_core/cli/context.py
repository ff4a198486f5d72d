"""`moescope context`: loss and routing by position, beyond the trained length."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from moe_core.cli.options import Parser, add_device, command, existing_run, finish, whole
from moe_core.cli.output import Output, progress_on_stderr, table

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from moe_core.model.transformer import MoETransformer
    from moe_core.routing.measures.beyond_length import Span
    from moe_core.runs.checkpoint import LoadedRun


def parser() -> Parser:
    """Its options."""
    parser = command(
        "context",
        "Held-out text four times as long as the trained length is read whole, under each way to stretch rotary\n"
        "angles (model.rope), on the same weights. Says the loss and the routing at 1, 2 and 4 times that length\n"
        "against reading in windows of it.",
        "context --run demo",
        "context --run demo --factor 2 --json context.json",
        "context --run demo --needles 32                      # and: are facts found that stand far back?",
    )
    parser.add_argument("--run", metavar="NAME", help="the run to look at (default: the run updated last)")
    parser.add_argument("--factor", metavar="N", type=whole(1, 64), default=4, help="stretch by this (default 4)")
    parser.add_argument("--texts", metavar="N", type=whole(3, 10_000), default=12, help="texts at most (default 12)")
    parser.add_argument(
        "--data", metavar="PATH", help="read this text, as for training, instead of the held-out text; what is found "
        "is then not kept beside the run",
    )  # fmt: skip
    parser.add_argument(
        "--needles", metavar="N", type=whole(8, 10_000), help="hide N facts in these texts and ask for them at the end"
    )
    add_device(parser)
    return finish(parser, context)


def context(arguments: argparse.Namespace, output: Output) -> int:
    """Print a table of schemes by span, and what it says."""
    run = existing_run(arguments.run)
    from moe_core.evaluation.long_context import SPANS, held_out_texts, long_texts, measure_long_context, read_long
    from moe_core.inference.device import resolve_device
    from moe_core.routing.measures.beyond_length import reading_verdict, routing_verdict, when_not_to_conclude
    from moe_core.runs.checkpoint import load_run

    loaded = load_run(run.name, device=resolve_device(arguments.device))
    length = SPANS[-1][1] * loaded.config.training.seq_len
    with progress_on_stderr() as progress:
        if arguments.data is None:
            found = measure_long_context(run, loaded, arguments.factor, arguments.texts, progress).found
            texts = held_out_texts(run, loaded, arguments.texts)[1]
        else:
            from moe_core.data.sources import read_documents
            from moe_core.inference.scoring import as_dataset

            dataset = as_dataset(loaded, read_documents(arguments.data))
            texts = long_texts(dataset, length).spaced(arguments.texts)
            found = read_long(loaded, texts, arguments.factor, progress)
    rows = [
        [
            read.scheme,
            f"{span.start} to {span.end - 1}",
            f"{span.nats.value:.3f}",
            f"{span.above_windows.value:+.3f}",
            f"{span.above_windows.low:+.3f} to {span.above_windows.high:+.3f}",
            f"{span.flips.value:.1%}",
            f"{span.busiest:.2f}",
            f"{_mean_entropy(span):.3f}",
        ]
        for read in found.schemes
        for span in read.spans
    ]
    heads = ["scheme", "positions", "nats", "against windows", "95 % interval", "flips", "busiest", "entropy"]
    output.say(table(heads, rows))
    for read in found.schemes:
        output.say(
            f"{read.scheme}: NMI of expert with position {read.position_nmi:.4f}, by chance below "
            f"{read.position_nmi_chance:.4f} in 95 of 100 (p = {read.position_p:.2f})"
        )
    verdict = f"{reading_verdict(found)} {routing_verdict(found)}"
    output.say(
        f"Trained length: {found.trained} tokens; {found.texts} texts of {length} from {found.documents} documents, "
        f"{found.groups} of them without a document in common. {verdict}"
    )
    output.say(when_not_to_conclude(found))
    needles = [] if arguments.needles is None else _needles(loaded, texts.ids, arguments, output)
    output.figures(
        {
            **{"run": run.name, "step": loaded.step, "factor": arguments.factor},
            **asdict(found),
            **{"verdict": verdict, "needles": needles},
        }
    )
    return 0


def _mean_entropy(span: Span) -> float:
    """Of the MoE layers; 0 in a dense model."""
    return sum(layer.entropy.value for layer in span.layers) / max(1, len(span.layers))


def _needles(
    loaded: LoadedRun, texts_NT: NDArray[np.int64], arguments: argparse.Namespace, output: Output
) -> list[dict[str, Any]]:
    """Print a table of schemes by length and depth, and what each says; the same for machines."""
    from torch import nn

    from moe_core.config.rope_schemes import ROPE_SCHEMES
    from moe_core.evaluation.long_context import under_scheme
    from moe_core.evaluation.needle import DEPTHS, find_needles, least_length, needle_verdict, trials_of

    trained = loaded.config.training.seq_len
    trials = trials_of(texts_NT, loaded.tokenizer, arguments.needles)
    room = [at for at in (trained // 2, trained, 2 * trained) if at >= least_length(trials)]
    lengths = [*room, 4 * trained]  # where even that has no room, find_needles says so
    rows, verdicts, figures = [], [], []
    for scheme in ROPE_SCHEMES:
        model = under_scheme(loaded, scheme, arguments.factor, lengths[-1])

        def logits(ids_BS: torch.Tensor, model: MoETransformer = model) -> torch.Tensor:
            states_BSD = model.states(ids_BS.to(model.embedding.weight.device)).states
            return nn.functional.linear(states_BSD[:, -1], model.head)

        with progress_on_stderr() as progress:
            found = find_needles(logits, trials, lengths, progress)
        verdict = needle_verdict(found, trained)
        rows += [
            [
                scheme,
                f"{at.length:,}",
                *(f"{cell.right:.0%}" for cell in at.by_depth),
                f"{at.together.right:.0%} ({at.together.low:.0%} to {at.together.high:.0%})",
                f"{at.together.margin:+.2f} ({at.together.margin_low:+.2f} to {at.together.margin_high:+.2f})",
                at.together.verdict,
            ]
            for at in found
        ]
        verdicts.append(f"{scheme}: {verdict}")
        figures.append({"scheme": scheme, "lengths": [asdict(at) for at in found], "verdict": verdict})
    heads = ["scheme", "tokens", *(f"at {depth:.0%}" for depth in DEPTHS), "all (95 %)", "margin, nats (95 %)", ""]
    output.say(table(heads, rows))
    for line in verdicts:
        output.say(line)
    return figures
