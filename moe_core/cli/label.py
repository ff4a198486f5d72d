"""`moescope label`: what is known of each token, beside its experts."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from moe_core.cli.held_out_routing import held_out_routing
from moe_core.cli.options import Parser, command, existing_run, finish
from moe_core.cli.output import Output, check_regular, progress_on_stderr, table
from moe_core.errors import UsageError
from moe_core.program import program
from moe_core.words import count_of, listed, number, p_value, percent

if TYPE_CHECKING:
    import pandas as pd

    from moe_core.inference.token_labels import Names
    from moe_core.routing.trace.trace import AnyTrace, RoutingTrace

MOST_CELLS = 12
MUCH_UNREAD = 0.1
"""Share of a domain that its grammar cannot read, from which its language is doubted."""


def parser() -> Parser:
    """Its options."""
    parser = command(
        "label",
        "Give every token of a trace a label, and say whether experts know it: the type of the node that the token\n"
        "stands in in its syntax tree (needs requirements-code.txt), its kind by its text, or any label of yours.\n"
        "Held against choices that are turned round in their documents, so that load, source and runs of equal\n"
        "choice stay. Where the number of experts varies, also which labels take more of them.",
        "label --run demo --syntax",
        "label --run demo --kinds",
        "label --trace trace.parquet --syntax snippets=javascript --out labelled.parquet",
        "label --trace trace.parquet --labels pos.csv --column tag --name 'part of speech' --out labelled.parquet",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", metavar="NAME", help="held-out text of this run, through its newest checkpoint")
    source.add_argument("--trace", metavar="X.parquet", help="a trace, as `trace` or `convert` writes it")
    parser.add_argument(
        "--syntax", nargs="*", metavar="DOMAIN=LANGUAGE", help="node types of the domains that are code: python, "
        "javascript or rust; without DOMAIN of all text, without anything by the names of the domains",
    )  # fmt: skip
    parser.add_argument(
        "--kinds", action="store_true", help="kinds of token by their text: what begins a word, is inside one, is a "
        "number, punctuation or white space",
    )  # fmt: skip
    parser.add_argument(
        "--labels", metavar="FILE", help="labels of your own: a .csv or .parquet with a row for each token of --trace, "
        "in its order; without FILE, --column is a column of --trace itself",
    )  # fmt: skip
    parser.add_argument("--column", metavar="NAME", help="the column that holds them (default label)")
    parser.add_argument("--name", metavar="WORDS", help="what a label is, in the singular, for sentences")
    parser.add_argument("--out", metavar="X.parquet", help="the trace with its labels, for `plots` and the dashboard")
    return finish(parser, label)


def label(arguments: argparse.Namespace, output: Output) -> int:
    """Label the tokens, and print the verdict a layer and the surest cells."""
    own = arguments.labels is not None or arguments.column is not None
    if own + (arguments.syntax is not None) + arguments.kinds != 1:
        raise UsageError("give one of --syntax, --kinds and --labels (or --column): what the labels are")
    if own and arguments.trace is None:
        raise UsageError("--labels and --column label the tokens of a --trace; expected one")
    if arguments.out is not None:
        check_regular(arguments.out, "--out")
    from moe_core.routing.measures.labelled_tokens import label_cells, label_nmi_test

    with progress_on_stderr() as progress:
        if arguments.trace is not None:
            from moe_core.routing.trace.trace import open_or_load

            labelled = _labelled(arguments, open_or_load(arguments.trace), own)
        else:
            labelled = _labelled(arguments, held_out_routing(existing_run(arguments.run))(progress), own)
        test, cells = label_nmi_test(labelled), label_cells(labelled)
    _say(output, labelled, test, cells)
    read = _say_what_was_read(output, arguments, labelled) if arguments.syntax is not None else {}
    numbers = _say_experts_per_token(output, labelled) or {}
    if arguments.out is not None:
        output.say(f"\nLook at it:  {program()} dashboard -- --trace {arguments.out}")
    from moe_core.routing.measures.domains import preferred

    output.figures(
        {
            "run": arguments.run,
            "trace": arguments.trace,
            "out": arguments.out,
            "labelling": labelled.labelling,
            "labels": list(labelled.labels),
            "tokens_and_unread": read,
            "layers": test.to_dict("records"),
            "preferred": preferred(cells).to_dict("records"),
            "experts_per_token": {name: frame.to_dict("records") for name, frame in numbers.items()},
        }
    )
    return 0


def _labelled(arguments: argparse.Namespace, routing: AnyTrace, own: bool) -> AnyTrace:
    """The trace with its labels: in memory, or in the file --out where there is one."""
    from moe_core.inference.token_labels import with_labels, write_labelled
    from moe_core.routing.trace.trace import RoutingTrace

    if own:
        names_of, labelling = _own_labels(arguments, routing)
    else:
        names_of, labelling = _kinds(arguments) if arguments.kinds else _syntax(arguments, routing)
    if arguments.out is not None:
        return write_labelled(routing, names_of, labelling, Path(arguments.out))
    if not isinstance(routing, RoutingTrace):
        raise UsageError(f"{arguments.trace!r} is larger than memory; give --out a file for the labelled trace")
    return with_labels(routing, names_of(routing, 0), labelling)


def _own_labels(arguments: argparse.Namespace, routing: AnyTrace) -> tuple[Callable[[RoutingTrace, int], Names], str]:
    """(the labels of a part that starts at a token, what they are called)."""
    from moe_core.inference.token_labels import column_labels

    column = arguments.column or "label"
    values = column_labels(Path(arguments.labels or arguments.trace), column, routing.num_tokens)
    return lambda part, start: values[start : start + part.num_tokens], arguments.name or column


def _kinds(arguments: argparse.Namespace) -> tuple[Callable[[RoutingTrace, int], Names], str]:
    """As _own_labels."""
    import numpy as np

    from moe_core.routing.measures.token_kinds import KIND, kind_labelled

    def names_of(part: RoutingTrace, _: int) -> Names:
        labelled = kind_labelled(part)
        assert labelled.label_ids is not None
        return np.array([*labelled.labels, None], dtype=object)[labelled.label_ids]

    return names_of, arguments.name or KIND


def _syntax(arguments: argparse.Namespace, routing: AnyTrace) -> tuple[Callable[[RoutingTrace, int], Names], str]:
    """As _own_labels."""
    from moe_core.data.syntax import NODE_TYPE
    from moe_core.inference.token_labels import languages_of, syntax_labels

    languages = languages_of(routing.domains, arguments.syntax)
    return lambda part, _: syntax_labels(part, languages), arguments.name or NODE_TYPE


def _say_what_was_read(output: Output, arguments: argparse.Namespace, labelled: AnyTrace) -> dict[str, tuple[int, int]]:
    """How much of each domain its grammar could read, and which domains have no language."""
    from moe_core.inference.token_labels import languages_of, unread_tokens

    languages, read = languages_of(labelled.domains, arguments.syntax), unread_tokens(labelled)
    output.say()
    for domain, (tokens, unread) in read.items():
        doubt = f"; is it {languages[domain]}?" if unread > MUCH_UNREAD * tokens else "."
        output.say(
            f"{domain}: {count_of(tokens, 'token')} read as {languages[domain]}, {percent(unread / tokens)} of them "
            f"where its grammar can read nothing{doubt}"
        )
    if others := [domain for domain in labelled.domains if domain not in languages]:
        output.say(f"Not labelled, as no language is said for them: {listed(others)}.")
    return read


def _say(output: Output, labelled: AnyTrace, test: pd.DataFrame, cells: pd.DataFrame) -> None:
    """How much text, the verdict, a row a layer and the surest preferences."""
    from moe_core.routing.measures.domains import preferred
    from moe_core.routing.measures.labelled_tokens import beyond_token_words, label_verdict

    tokens, documents = int(test["tokens"].iloc[0]), int(test["documents"].iloc[0])
    output.say(
        f"{count_of(tokens, 'token')} of {count_of(documents, 'document')} with one of "
        f"{count_of(len(labelled.labels), 'label')}: {labelled.labelling}."
    )
    output.say(f"{label_verdict(test)} {beyond_token_words(test)}".strip())
    output.say()
    rows = [
        [str(row["layer"]), number(row["estimate"]), f"{number(row['low'])} to {number(row['high'])}",
         number(row["nmi"]), number(row["null_mean"]), p_value(row["p_adjusted"]), percent(row["beyond_token"]),
         percent(row["beyond_token_chance"]), str(row["verdict"])]
        for _, row in test.iterrows()
    ]  # fmt: skip
    header = ["layer", "NMI", "95 %", "as counted", "by chance", "", "beyond token", "by chance", "one expert choice"]
    output.say(table(header, rows))
    output.say()
    surest = preferred(cells).head(MOST_CELLS)
    rows = [
        [str(row["layer"]), str(row["expert"]), str(row["domain"]), f"{row['domain_tokens']:,}",
         percent(row["share"]), percent(row["expected"]), p_value(row["p_adjusted"])]
        for _, row in surest.iterrows()
    ]  # fmt: skip
    header = ["layer", "expert", labelled.labelling, "tokens", "takes", "its documents do", ""]
    output.say(table(header, rows) if rows else "No expert is surely preferred by any label.")


def _say_experts_per_token(output: Output, labelled: AnyTrace) -> dict[str, pd.DataFrame] | None:
    """Which labels take more experts, and which tokens skip most; the figures, None where the number is fixed."""
    from moe_core.routing.measures.experts_per_token import (
        experts_per_token_classes,
        experts_per_token_of_types,
        experts_per_token_test,
        experts_per_token_verdict,
        fixed_words,
        varies,
    )

    output.say()
    if not varies(labelled):
        output.say(fixed_words(labelled))
        return None
    test, classes = experts_per_token_test(labelled), experts_per_token_classes(labelled)
    output.say(experts_per_token_verdict(test))
    output.say()
    rows = [
        [str(row["layer"]), str(row["class"]), f"{row['tokens']:,}", number(row["experts"]),
         f"{number(row['low'])} to {number(row['high'])}", number(row["expected"]), p_value(row["p_adjusted"])]
        for _, row in classes.iterrows() if not row["uncertain"]
    ]  # fmt: skip
    header = ["layer", labelled.labelling, "tokens", "experts a token", "95 %", "its documents take", ""]
    output.say(table(header, rows) if rows else "No label surely takes more or fewer experts.")
    types = experts_per_token_of_types(labelled)
    if len(types):
        ends = [f"{row['token']!r} {number(row['experts'])}" for _, row in types.head(MOST_CELLS).iterrows()]
        output.say(f"\nFewest experts of {count_of(len(types), 'token type')} (no test): {', '.join(ends)}.")
    return {"layers": test, "classes": classes, "types": types}
