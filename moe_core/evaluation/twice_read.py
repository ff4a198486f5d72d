"""What it costs to read a text another way: the change of loss, of tokens whose experts changed and of those that kept
them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from moe_core.errors import UsageError
from moe_core.evaluation.effects import SourceBootstrap
from moe_core.inference.tracing import TracedText
from moe_core.routing.measures.comparison import check_same_experts, check_same_tokens, flipped_tokens
from moe_core.routing.trace.types import BoolArray, Float32Array, Float64Array
from moe_core.words import fixed, percent, signed_two_digits

GROUPS = ("all", "flipped", "kept")


@dataclass(frozen=True, eq=False)
class LossChange:
    """One text read twice."""

    frame: pd.DataFrame
    """A row for each of GROUPS that has tokens. Columns: group; tokens, predictions; before, after, mean losses in nats
    per token; change = after - before; low, high, its paired 95 % interval by bootstrap over sources (NaN with fewer
    than two)."""
    difference: float
    """Nats: change of flipped predictions - change of the others; NaN without both."""
    low: float
    high: float
    """Its 95 % interval, of the same draws."""

    def of(self, group: str) -> dict[str, Any] | None:
        """The row of a group; None where it has no tokens."""
        rows: list[dict[Any, Any]] = self.frame[self.frame["group"] == group].to_dict("records")
        return rows[0] if rows else None


def loss_change(first: TracedText, second: TracedText) -> LossChange:
    """How the loss changed from the first reading to the second.

    A token is predicted at the place before it: a prediction is flipped where the set of experts of that place is
    another one in any layer. Raises TraceError unless both are of the same tokens, layers and experts, UsageError
    where nothing was scored.
    """
    a, b = first.trace, second.trace
    check_same_tokens(a, b)
    check_same_experts(a, b)
    delta_T: Float32Array = second.losses - first.losses
    scored_T = np.isfinite(delta_T)
    if not scored_T.any():
        raise UsageError("no token of the text is predicted by others; expected documents of two tokens or more")
    flipped_T = _predicted_by(np.any([flipped_tokens(a, b, row) for row in range(a.num_layers)], axis=0)) & scored_T
    groups = dict(zip(GROUPS, (scored_T, flipped_T, scored_T & ~flipped_T), strict=True))
    bootstrap = SourceBootstrap(a.source_ids, a.domain_ids, a.domains, scored_T)
    rows = []
    for name, own_T in groups.items():
        if own_T.any():
            change, low, high = _mean(bootstrap, delta_T, own_T, scored_T)
            before, after = (float(losses[own_T].mean(dtype=np.float64)) for losses in (first.losses, second.losses))
            rows.append(
                {
                    "group": name,
                    "tokens": int(own_T.sum()),
                    "before": before,
                    "after": after,
                    "change": change,
                    "low": low,
                    "high": high,
                }
            )
    difference = (float("nan"),) * 3
    if len(rows) == len(GROUPS):
        value_T = _linear(delta_T, groups["flipped"], scored_T) - _linear(delta_T, groups["kept"], scored_T)
        difference = _interval(bootstrap, value_T)
    return LossChange(pd.DataFrame(rows), *difference)


def _predicted_by(flipped_T: BoolArray) -> BoolArray:
    """[T] of each token whether the place before it, which predicts it, is flipped."""
    return np.concatenate([[False], flipped_T[:-1]])


def _mean(
    bootstrap: SourceBootstrap, delta_T: Float32Array, own_T: BoolArray, scored_T: BoolArray
) -> tuple[float, float, float]:
    return _interval(bootstrap, _linear(delta_T, own_T, scored_T))


def _linear(delta_T: Float32Array, own_T: BoolArray, scored_T: BoolArray) -> Float64Array:
    """[T] values whose mean over all scored tokens is that of `delta_T` over `own_T`, and whose sums over sources vary
    as it does: how many of a source's tokens are of the group varies too (linearisation of a ratio)."""
    mean = float(delta_T[own_T].mean(dtype=np.float64))
    share = own_T.sum() / scored_T.sum()
    return mean + np.where(own_T, (delta_T.astype(np.float64) - mean) / share, 0.0)


def _interval(bootstrap: SourceBootstrap, value_T: Float64Array) -> tuple[float, float, float]:
    row = bootstrap.means_of_sums(bootstrap.sums(value_T.astype(np.float32)))[0]
    return row["delta_nats"], row["low"], row["high"]


def loss_verdict(found: LossChange) -> str:
    """Is the text foreseen worse, and is that so where experts flipped? With the size and its certainty."""
    whole = found.of("all")
    assert whole is not None
    size = (
        f"{fixed(whole['before'], 3)} to {fixed(whole['after'], 3)} nats per token, {_change(whole)} over "
        f"{whole['tokens']:,} predictions"
    )
    if np.isnan(whole["low"]):
        text = f"Loss: {size}; from one source, whether it surely changed cannot be told."
    elif whole["low"] > 0:
        text = f"The loss rises: {size}."
    elif whole["high"] < 0:
        text = f"The loss falls: {size}."
    else:
        text = f"That the loss changed cannot be told: {size}."
    flipped, kept = found.of("flipped"), found.of("kept")
    if flipped is None or kept is None:
        return text
    share = percent(flipped["tokens"] / whole["tokens"])
    both = (
        f"{_change(flipped)} where the experts of the place flipped in some layer ({share}), {_change(kept)} elsewhere"
    )
    if np.isnan(found.low):
        return f"{text} Of it {both}."
    if found.low > 0:
        return f"{text} Predictions with flipped experts lose more: {both}."
    if found.high < 0:
        return f"{text} Predictions with flipped experts lose less: {both}."
    return f"{text} That flipped predictions lose more than others cannot be told: {both}."


def _change(row: dict[str, Any]) -> str:
    text = signed_two_digits(row["change"])
    if np.isnan(row["low"]):
        return text
    return f"{text} (95 % interval {signed_two_digits(row['low'])} to {signed_two_digits(row['high'])})"
