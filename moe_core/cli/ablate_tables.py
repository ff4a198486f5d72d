"""Effects of switching experts off as a printed table."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

from moe_core.cli.output import Output, table
from moe_core.words import duration, signed

if TYPE_CHECKING:
    import argparse

    import pandas as pd

    from moe_core.data.tokens import TokenDataset
    from moe_core.runs.checkpoint import LoadedRun

ROWS_SHOWN = 40
"""Experts that the printed table holds; --json and the run's folder hold all."""


def say_what_was_read(effects: pd.DataFrame, loaded: LoadedRun, seconds: float, output: Output) -> dict[str, object]:
    """Print which text was read, how, by which step and in what time; returns the same as figures."""
    from moe_core.data.windows import window_words
    from moe_core.inference.open import context_window

    about = effects.attrs
    output.say(window_words(context_window(loaded), about["windows"]))
    output.say(
        f"{about['tokens']:,} tokens of {about['text']} through step {loaded.step:,} in {duration(seconds)}; kept in "
        f"{loaded.run.path / 'analysis'}"
    )
    read = {key: about[key] for key in ("text", "tokens", "windows")}
    return {"run": loaded.run.name, "step": loaded.step, **read, "seconds": seconds}


def effects_table(effects: pd.DataFrame, part: str = "expert") -> str:
    """A row an expert (or, as `part`, a head), the largest changes where there are too many; a column a domain."""
    total = effects[effects["domain"] == "all"]
    if len(total) > ROWS_SHOWN:
        total = total.loc[total["delta_nats"].abs().nlargest(ROWS_SHOWN).index]
    domains = [name for name in dict.fromkeys(effects["domain"]) if name != "all"]
    cells = {(row["layer"], row[part], row["domain"]): row for row in effects.to_dict("records")}
    rows = []
    for one in total.to_dict("records"):
        layer, expert = one["layer"], one[part]
        own = (cells.get((layer, expert, name)) for name in domains)
        affected = f"{one.get('affected', one['tokens']):,}"  # a head has all tokens
        rows.append(
            [str(layer), str(expert), affected, signed(one["delta_nats"], 4), interval(one, 4)]
            + ["-" if cell is None else signed(cell["delta_nats"], 4) + "~" * bool(cell["uncertain"]) for cell in own]
        )
    return table(["layer", part, "affected", "all", "interval", *domains], rows)


def interval(row: Mapping[Hashable, Any], digits: int) -> str:
    return f"{signed(row['low'], digits)} to {signed(row['high'], digits)}"


def text_of(loaded: LoadedRun, arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments that say which text to read; none for the held-out text."""
    if arguments.data is None:
        return {}
    from moe_core.data.shards.documents_at import check_tokenizer, documents_at
    from moe_core.inference.held_out import ABLATED_TOKENS_PER_DOMAIN
    from moe_core.inference.scoring import as_dataset

    check_tokenizer(arguments.data, loaded.tokenizer)
    documents = as_dataset(loaded, documents_at(arguments.data))
    dataset: TokenDataset = documents.select(ABLATED_TOKENS_PER_DOMAIN, seed=0)
    return {"documents": dataset, "text": arguments.data}
