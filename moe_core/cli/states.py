"""`moescope states`: do states of one text lie together?"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from moe_core.cli.options import Parser, command, existing_run, finish, whole
from moe_core.cli.output import Output, progress_on_stderr, table
from moe_core.inference.device import DEVICES
from moe_core.words import signed

if TYPE_CHECKING:
    from moe_core.data.tokens import TokenDataset
    from moe_core.evaluation.half_states import HalfStates, Share
    from moe_core.runs.checkpoint import LoadedRun


def parser() -> Parser:
    """Its options."""
    parser = command(
        "states",
        "Two halves of each held-out document are read apart; the mean of a half's last states should be nearest to\n"
        "that of the other half. Says how often it is, against chance, the source alone and shared words, and with\n"
        "--against how much oftener than in another run. A contrastive loss trains for it: training.contrastive.",
        "states --run demo",
        "states --run with --against without --json states.json",
    )
    parser.add_argument("--run", metavar="NAME", help="the run to look at (default: the run updated last)")
    parser.add_argument("--against", metavar="NAME", help="another run with the same held-out text")
    parser.add_argument("--data", metavar="PATH", help="read this text, as for training, instead of the held-out text")
    parser.add_argument(
        "--tokens", metavar="N", type=whole(8, 1_000_000), default=64, help="read so many of each half (default 64)"
    )
    parser.add_argument(
        "--documents",
        metavar="N",
        type=whole(2, 1_000_000),
        default=64,
        help="read at most so many of each domain (default 64)",
    )
    parser.add_argument(
        "--device", choices=DEVICES, default="cpu", help="where to compute (default cpu; auto = cuda where present)"
    )
    return finish(parser, states)


def states(arguments: argparse.Namespace, output: Output) -> int:
    """Print how often halves of a document find each other."""
    run = existing_run(arguments.run)
    from moe_core.evaluation.half_states import difference, retrieval, retrieval_verdict
    from moe_core.inference.device import resolve_device
    from moe_core.runs.checkpoint import load_run

    device = resolve_device(arguments.device)
    with progress_on_stderr() as progress:
        loaded = load_run(run.name, device=device)
        embedded = _embedded(loaded, loaded, arguments, progress)
        other = None
        if arguments.against is not None:
            other = _embedded(load_run(arguments.against, device=device), loaded, arguments, progress)
    found = retrieval(embedded)
    verdict = retrieval_verdict(found)
    rows = [[domain, *_cells(share)] for domain, share in found.by_domain.items()]
    rows += [["all", *_cells(found.found)], ["by shared words", *_cells(found.by_words)]]
    output.say(table(["halves found", "share", "95 % interval"], rows))
    output.say(f"alignment {found.alignment:.3f}, uniformity {found.uniformity:.3f}; {found.tokens:,} tokens")
    output.say(verdict)
    figures: dict[str, Any] = {"run": run.name, "step": loaded.step, **asdict(found), "verdict": verdict}
    if other is not None:
        moved = difference(embedded, other)
        output.say(_difference_words(moved, arguments.against))
        figures["against"] = {"run": arguments.against, "difference": asdict(moved), **asdict(retrieval(other))}
    output.figures(figures)
    return 0


def _embedded(loaded: LoadedRun, owner: LoadedRun, arguments: argparse.Namespace, progress: Any) -> HalfStates:
    from moe_core.evaluation.half_states import embed_halves

    text = _text(loaded, owner, arguments)
    longest = min(arguments.tokens, loaded.config.model.max_seq_len - 1)
    return embed_halves(loaded, text, longest=longest, per_domain=arguments.documents, progress=progress)


def _text(loaded: LoadedRun, owner: LoadedRun, arguments: argparse.Namespace) -> TokenDataset:
    """The text of `owner`, in the tokens of `loaded`."""
    from moe_core.data.sources import read_documents
    from moe_core.evaluation.half_states import held_out_documents
    from moe_core.inference.scoring import as_dataset

    if arguments.data is not None:
        return as_dataset(loaded, read_documents(arguments.data))
    return held_out_documents(loaded, owner.run)


def _cells(share: Share) -> list[str]:
    return [f"{share.value:.1%}", f"{share.low:.1%} to {share.high:.1%}"]


def _difference_words(moved: Share, against: str) -> str:
    numbers = (
        f"{signed(100 * moved.value, 1)} percentage points (95 % interval {signed(100 * moved.low, 1)} to "
        f"{signed(100 * moved.high, 1)}) against run {against}"
    )
    if moved.low > 0:
        return f"Halves find each other oftener: {numbers}."
    if moved.high < 0:
        return f"Halves find each other less often: {numbers}."
    return f"No difference can be told: {numbers}."
