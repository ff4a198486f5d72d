"""`moescope data merge`: several folders of shards as one, in the mix that is asked for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_core.cli.options import Parser, command, finish, positive, whole
from moe_core.cli.output import Output, progress_on_stderr, table
from moe_core.words import count_of, p_value, percent

if TYPE_CHECKING:
    from moe_core.data.shards.shard_merge import Merged

STRATEGIES = ("equal", "proportional", "weighted")


def parser() -> Parser:
    """Its options."""
    parser = command(
        "data merge",
        "Write several folders of shards as one. No document comes twice: the folder that has least for its share is\n"
        "taken whole, the others are drawn from. The mix that comes out is printed, with chi-squared tests.",
        "data merge out/a out/b --out out/mixed",
        "data merge out/a out/b --out out/mixed --strategy equal --seed 3",
        "data merge out/a out/b --out out/mixed --strategy weighted --weights 0.7 0.3",
        "data merge --config mix.hocon --out out/mixed",
    )
    parser.add_argument("folders", metavar="FOLDER", nargs="*", help="folders that data prepare or data merge wrote")
    parser.add_argument("--out", metavar="DIR", help="folder to write; it must be empty or missing")
    parser.add_argument(
        "--strategy", choices=STRATEGIES, help="equal: as many tokens of each; proportional (default): everything; "
        "weighted: tokens by --weights",
    )  # fmt: skip
    parser.add_argument(
        "--weights", metavar="W", nargs="+", type=positive(1e9), help="a number for each folder; 7 3 is the same as "
        "0.7 0.3, and means --strategy weighted",
    )  # fmt: skip
    parser.add_argument("--seed", metavar="S", type=whole(0, 2**32 - 1), help="which documents are drawn (default 0)")
    parser.add_argument(
        "--config", metavar="FILE", help="a HOCON or JSON file with folders, out, strategy, weights and seed; paths in "
        "it are relative to it, and the command line wins",
    )  # fmt: skip
    return finish(parser, merge)


def merge(arguments: argparse.Namespace, output: Output) -> int:
    """Write the merged folder and print what is in it."""
    from moe_core.data.shards.merge_plan import merge_plan
    from moe_core.data.shards.shard_merge import merge as merge_folders

    plan = merge_plan(
        Path(arguments.config) if arguments.config else None,
        folders=[Path(folder) for folder in arguments.folders],
        out=Path(arguments.out) if arguments.out else None,
        strategy=arguments.strategy,
        weights=arguments.weights,
        seed=arguments.seed,
    )
    with progress_on_stderr() as progress:
        merged = merge_folders(
            plan.folders,
            plan.out,
            strategy=plan.strategy,
            weights=plan.weights,
            seed=plan.seed,
            progress=progress,
        )
    output.say(_mix_table(merged))
    output.say(_tests_table(merged))
    left_out = f"; {count_of(merged.left_out, 'held-out document')} left out, for their text is in training"
    output.say(f"{plan.out}: {plan.strategy}, seed {plan.seed}{left_out if merged.left_out else ''}")
    output.figures({"out": str(plan.out), "strategy": plan.strategy, "seed": plan.seed, **_figures(merged)})
    return 0


def _mix_table(merged: Merged) -> str:
    rows = []
    for one in merged.drawn:
        of_split = sum(other.total.tokens for other in merged.drawn if other.split == one.split)
        if not of_split:
            continue
        total = one.total
        share = percent(total.tokens / of_split)
        counts = [f"{total.documents:,}", f"{total.tokens:,}"]
        rows.append([one.split, one.label, "all", percent(one.asked), share, *counts])
        for domain, part in sorted(one.drawn.items()):
            share = percent(part.tokens / of_split)
            rows.append([one.split, one.label, domain, "", share, f"{part.documents:,}", f"{part.tokens:,}"])
    return table(["split", "folder", "domain", "asked", "share of tokens", "documents", "tokens"], rows)


def _tests_table(merged: Merged) -> str:
    from moe_core.data.shards.shard_merge import mix_tests

    rows = [
        [test.split, test.of, f"{test.statistic:.3g}", str(test.degrees), p_value(test.p)]
        for test in mix_tests(merged)
        if test.degrees
    ]
    return table(["split", "drawn against asked", "chi squared", "degrees", "p"], rows)


def _figures(merged: Merged) -> dict[str, Any]:
    from dataclasses import asdict

    from moe_core.data.shards.shard_merge import mix_tests

    return {
        "left_out": merged.left_out,
        "mix": [asdict(one) for one in merged.drawn],
        "tests": [asdict(test) for test in mix_tests(merged)],
    }
