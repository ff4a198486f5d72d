"""What RoutingCounts are counted by, and how many counts there may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moe_core.errors import TraceError
from moe_core.routing.trace.checks import MAX_EXPERTS

MAX_NUMBERS = 2**26
"""Most counts that one RoutingCounts holds: 512 MiB."""
Unit = Literal["token", "choice"]


@dataclass(frozen=True)
class Group:
    """Whose tokens are counted together: a source and its domain."""

    domain: str = "all"
    source: str | None = None
    """The text that the tokens are from; None = the counts do not tell sources apart."""


def check_number(S: int, L: int, G: int, E: int) -> None:
    """Raise TraceError, before memory is taken, where so many counts would not fit or there are none."""
    if min(S, L, G) < 1 or not 1 <= E <= MAX_EXPERTS:
        raise TraceError(
            f"{S} steps, {L} layers, {G} groups, {E} experts; expected one or more, up to {MAX_EXPERTS} experts"
        )
    if S * L * G * E > MAX_NUMBERS:
        raise TraceError(
            f"{S:,} steps x {L} layers x {G:,} groups x {E} experts are more than {MAX_NUMBERS:,} counts; count fewer "
            'groups (by="domain") or fewer steps at a time'
        )
