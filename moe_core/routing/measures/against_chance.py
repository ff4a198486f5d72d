"""What the null models share: when a value counts as found, and how many tests at once are paid for.

A verdict needs both: significance (above the null) and size (large enough to matter), never a bare p. With several
layers the p-values are adjusted (Benjamini-Hochberg), so that one of many layers does not look special by luck.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from moe_core.routing.baselines.findings import Finding
from moe_core.routing.statistics.multiple_comparisons import SIGNIFICANCE, adjust
from moe_core.routing.statistics.permutation import p_values
from moe_core.routing.trace.types import Float64Array

CHANCE = "not distinguishable from chance"
FEW_DOCUMENTS = "cannot be tested: too few documents"


def judge(p_adjusted: float, effect: float, *, clear_effect: float, finding: Finding) -> str:
    """The verdict in words: CHANCE unless significant, then by the size of the effect. NaN is never significant."""
    if not p_adjusted <= SIGNIFICANCE:
        return CHANCE
    return finding.clearly if effect >= clear_effect else finding.slightly


def tested(
    measured: Mapping[str, Any],
    null_PL: Float64Array,
    interval: tuple[Float64Array, Float64Array],
    *,
    finding: Finding,
    clear_effect: float,
    untestable: Sequence[str],
    **facts: Any,
) -> pd.DataFrame:
    """The frame of a baseline: a measure of L layers against P draws of its null.

    `measured`: columns that say where, the last of them the measure [L]; `interval`: its (low, high) [L];
    `untestable`: why a layer cannot be tested, or ""; `facts`: further columns. Columns: those of `measured`;
    null_mean, null_p99 (99th percentile) of the draws; p_value = (1 + #{null >= measure}) / (1 + P), 0..1;
    p_adjusted over the layers (Benjamini-Hochberg); effect = measure - null_mean, the size; low, high; `facts`;
    verdict = finding.clearly (p_adjusted <= SIGNIFICANCE and effect >= clear_effect), finding.slightly (significant,
    but smaller), CHANCE, or why it cannot be tested (then null, p and effect are NaN).
    """
    value_L = np.asarray(list(measured.values())[-1], dtype=np.float64)
    null_PL = np.where([bool(reason) for reason in untestable], np.nan, null_PL)
    p_L = p_values(value_L, null_PL)
    adjusted_L = adjust(p_L)
    null_mean_L = null_PL.mean(axis=0)
    effect_L = value_L - null_mean_L
    return pd.DataFrame(
        {
            **measured,
            "null_mean": null_mean_L,
            "null_p99": np.quantile(null_PL, 0.99, axis=0),
            "p_value": p_L,
            "p_adjusted": adjusted_L,
            "effect": effect_L,
            "low": interval[0],
            "high": interval[1],
            **facts,
            "verdict": [
                reason or judge(p, effect, clear_effect=clear_effect, finding=finding)
                for reason, p, effect in zip(untestable, adjusted_L, effect_L, strict=True)
            ],
        }
    )
