"""What a measure with a null says: found or not, how clearly, in one row a layer and in one sentence.

A verdict needs both: significance (above the null) and size (large enough to matter), never a bare p. With several
layers the p-values are adjusted (Benjamini-Hochberg), so that one of many layers does not look special by luck.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from moe_core.routing.measures.used import sample_words
from moe_core.routing.statistics.information import Estimate
from moe_core.routing.statistics.multiple_comparisons import SIGNIFICANCE, adjust
from moe_core.routing.statistics.permutation import p_values
from moe_core.routing.trace.types import Float64Array
from moe_core.words import layers_named, p_value, percent

CHANCE = "not distinguishable from chance"
CANNOT_BE_TESTED = "cannot be tested"
"""How the verdict of what was not tested begins; the reason follows. Not tested is not the same as not found."""
UNKNOWN = f"{CANNOT_BE_TESTED}: its value is unknown"
FEW_DOCUMENTS = "cannot be tested: too few documents"
NOTHING_THERE = "Not distinguishable from chance: do not read patterns into this map."


@dataclass(frozen=True)
class Finding:
    """What the column `verdict` says when a measure is above its null: by enough to matter, or only slightly."""

    clearly: str
    slightly: str

    @property
    def both(self) -> tuple[str, str]:
        """Every verdict that says something was found."""
        return self.clearly, self.slightly


def finding_of(what: str, comparison: str) -> Finding:
    """finding_of("knows the domain of a token", "better")."""
    return Finding(f"{what} clearly {comparison} than chance", f"{what} slightly {comparison} than chance")


def judge(p_adjusted: float, effect: float, *, clear_effect: float, finding: Finding) -> str:
    """The verdict in words: CHANCE unless significant, then by the size of the effect; UNKNOWN where p is NaN."""
    if p_adjusted != p_adjusted:
        return UNKNOWN
    if not p_adjusted <= SIGNIFICANCE:
        return CHANCE
    return finding.clearly if effect >= clear_effect else finding.slightly


@dataclass(frozen=True)
class Sampled:
    """What `tested` needs to know of a trace too large for its null: the p-value is of a sample, the size of all."""

    value: Float64Array
    """[L] the measure of the sample: what the null's draws, of as many tokens, are held against."""
    null_mean: Float64Array
    """[L] mean of the null over all tokens: what the measure of all is held against."""


def tested(
    measured: Mapping[str, Any],
    null_PL: Float64Array,
    estimate: Estimate,
    *,
    finding: Finding,
    clear_effect: float,
    untestable: Sequence[str],
    sampled: Sampled | None,
    used: Mapping[str, int],
    tolerance: float = 0.0,  # noqa: PT028  (no test, whatever its name)
    **facts: Any,
) -> pd.DataFrame:
    """The frame of a baseline: a measure of L layers against P draws of its null.

    `measured`: columns that say where, the last of them the measure [L] as counted; `estimate`: the measure without its
    bias, with its interval; `untestable`: why a layer cannot be tested, or ""; `sampled`: where the draws are of a
    sample, or the mean of the null is known without them; `used`: columns of used.used; `tolerance`: so much besides
    chance is nothing to find; it adds to the null as independent noise does, in squares; `facts`: further columns.
    Columns: those of `measured`; null_mean, null_p99 (99th percentile) of the draws, at as many tokens as the measure;
    p_value = (1 + #{sqrt(null^2 + tolerance^2) >= measure}) / (1 + P), 0..1, both of the same tokens; p_adjusted over
    the layers (Benjamini-Hochberg); effect = measure - null_mean, the size; estimate, low, high; `used`; `facts`;
    verdict = finding.clearly (p_adjusted <= SIGNIFICANCE and effect >= clear_effect), finding.slightly (significant,
    but smaller), CHANCE, or why it cannot be tested (then null, p and effect are NaN).
    """
    value_L = np.asarray(list(measured.values())[-1], dtype=np.float64)
    reasons = [bool(reason) for reason in untestable]
    null_PL = np.where(reasons, np.nan, null_PL)
    p_L = p_values(value_L if sampled is None else sampled.value, np.hypot(null_PL, tolerance))
    adjusted_L = adjust(p_L)
    of_draws_L = null_PL.mean(axis=0)
    null_mean_L = of_draws_L if sampled is None else np.where(reasons, np.nan, sampled.null_mean)
    effect_L = value_L - null_mean_L
    return pd.DataFrame(
        {
            **measured,
            "null_mean": null_mean_L,
            # Of more tokens the draws would lie closer together: their spread over the sample is never too small.
            "null_p99": null_mean_L + np.quantile(null_PL, 0.99, axis=0) - of_draws_L,
            "p_value": p_L,
            "p_adjusted": adjusted_L,
            "effect": effect_L,
            **estimate._asdict(),
            **used,
            **facts,
            "verdict": [
                reason or judge(p, effect, clear_effect=clear_effect, finding=finding)
                for reason, p, effect in zip(untestable, adjusted_L, effect_L, strict=True)
            ],
        }
    )


def layers_verdict(
    test: pd.DataFrame,
    finding: Finding,
    size: Callable[[pd.Series[Any]], str],
    *,
    clear: str,
    slight: str,
    place: Callable[[pd.Series[Any]], str] = lambda row: f"layer {int(row['layer'])}",
) -> str:
    """The layer with the largest effect of those found, with its size; or why there is none."""
    if test.empty:
        return "There is nothing to test: the trace has too few MoE layers."
    found = test[test["verdict"].isin(finding.both)]
    if found.empty:
        untestable = test[test["verdict"] != CHANCE]
        if len(untestable) == len(test):
            return f"This {untestable['verdict'].iloc[0]}."
        return f"{NOTHING_THERE[:-1]}{not_tested(test)}." if len(untestable) else NOTHING_THERE
    best = found.iloc[int(found["effect"].argmax())]
    where = f"{place(best)} most, " if len(test) > 1 else ""
    certainty = f"{size(best)} ({certainty_words(best)})"
    others = test[test["verdict"] == CHANCE]
    rest = f"; {layers_named(others['layer'])} not distinguishable from chance" if len(others) else ""
    rest += not_tested(test)
    if best["verdict"] == finding.clearly:
        return f"{clear}: {where}{certainty}{rest}."
    return f"{slight}: {where}{certainty}, too little to rely on{rest}."


def not_tested(test: pd.DataFrame) -> str:
    """ "; layer 3 cannot be tested: ..." for the layers of which that is the verdict, each reason once; or ""."""
    reasons = test[test["verdict"].str.startswith(CANNOT_BE_TESTED)].groupby("verdict", sort=False)["layer"]
    return "".join(f"; {layers_named(layers)} {reason}" for reason, layers in reasons)


def certainty_words(row: Any) -> str:
    """ "p < 0.005", and of how much text the test is where that is not all of it."""
    return " ".join(part for part in (p_value(row.p_adjusted), sample_words(row)) if part)


def interval_words(row: Any, form: Callable[[float], str]) -> str:
    """ "0.29 (95 % interval 0.28 to 0.3)", of a row of `tested`."""
    if pd.isna(row.low):
        return f"{form(row.estimate)} (too few documents for an interval)"
    return f"{form(row.estimate)} (95 % interval {form(row.low)} to {form(row.high)})"


def against_null(row: Any) -> str:
    """What chance gives in a row of `tested`, for the sentence of a bar."""
    most = f"at most {percent(row.null_p99)} in 99 of 100"
    return f"{percent(row.null_mean)} by chance and {most} ({certainty_words(row)})"
