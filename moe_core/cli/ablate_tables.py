"""Effects of switching experts off as a printed table."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

from moe_core.cli.output import table
from moe_core.words import signed

if TYPE_CHECKING:
    import pandas as pd

ROWS_SHOWN = 40
"""Experts that the printed table holds; --json and the run's folder hold all."""


def effects_table(effects: pd.DataFrame) -> str:
    """A row an expert, the largest changes where there are too many; a column a domain."""
    total = effects[effects["domain"] == "all"]
    if len(total) > ROWS_SHOWN:
        total = total.loc[total["delta_nats"].abs().nlargest(ROWS_SHOWN).index]
    domains = [name for name in dict.fromkeys(effects["domain"]) if name != "all"]
    cells = {(row["layer"], row["expert"], row["domain"]): row for row in effects.to_dict("records")}
    rows = []
    for one in total.to_dict("records"):
        layer, expert = one["layer"], one["expert"]
        own = (cells.get((layer, expert, name)) for name in domains)
        rows.append(
            [str(layer), str(expert), f"{one['affected']:,}", signed(one["delta_nats"], 4), interval(one, 4)]
            + ["-" if cell is None else signed(cell["delta_nats"], 4) + "~" * bool(cell["uncertain"]) for cell in own]
        )
    return table(["layer", "expert", "affected", "all", "interval", *domains], rows)


def interval(row: Mapping[Hashable, Any], digits: int) -> str:
    return f"{signed(row['low'], digits)} to {signed(row['high'], digits)}"
