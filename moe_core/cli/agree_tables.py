"""Tables of `agree`: agreement and margins layer by layer, and what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_core.cli.output import table
from moe_core.routing.measures.agreement import shared_tenths
from moe_core.words import fixed, number, percent, signed_two_digits

if TYPE_CHECKING:
    from moe_core.evaluation.twice_read import LossChange
    from moe_core.routing.measures.agreement import Agreement, SharedPart
    from moe_core.routing.measures.flip_margins import FlipMargins

MOST_LAYERS = 48
"""More are in --json."""
_BASIS = {
    "boundary": "margin at flips",
    "last weight": "last weight at flips",
    "lead": "lead at flips",
    "none": "margin at flips",
}


def layers_table(found: Agreement, margins: FlipMargins) -> str:
    """A row for each layer, the whole first."""
    header = ["layer", "identical", "95 % interval", "chance", "first choice", "95 % interval", "chance", "flips"]
    header += [_BASIS[margins.experts.basis], "elsewhere", "closer than others"]
    whole = margins.experts
    rows = [["all", *_part(found.all_choices), *_part(found.first_choice), f"{whole.flips:,}"]]
    rows[0] += [*_medians(whole.at_flips.median, whole.elsewhere.median), shared_tenths(whole.closer.value)]
    for one, own in zip(found.layers[:MOST_LAYERS], whole.layers, strict=False):
        rows.append([f"{one.layer}", *_part(one.all_choices), *_part(one.first_choice), f"{own.flips:,}"])
        rows[-1] += [*_medians(own.at_flips.median, own.elsewhere.median), shared_tenths(own.closer.value)]
    return table(header, rows)


def loss_table(found: LossChange) -> str:
    """All predictions, those with flipped experts, and the others."""
    names = {"all": "all", "flipped": "experts flipped in some layer", "kept": "experts the same in all"}
    rows = [
        [
            names[row["group"]], f"{row['tokens']:,}", fixed(row["before"], 3), fixed(row["after"], 3),
            signed_two_digits(row["change"]),
            f"{signed_two_digits(row['low'])} to {signed_two_digits(row['high'])}" if row["low"] == row["low"] else "",
        ]
        for row in found.frame.to_dict("records")
    ]  # fmt: skip
    return table(["predictions", "tokens", "nats before", "after", "change", "95 % interval"], rows)


def _part(part: SharedPart) -> list[str]:
    interval = f"{shared_tenths(part.low)} to {shared_tenths(part.high)}" if part.low == part.low else ""
    return [shared_tenths(part.value), interval, percent(part.chance)]


def _medians(*values: float) -> list[str]:
    return ["" if value != value else number(value) for value in values]
