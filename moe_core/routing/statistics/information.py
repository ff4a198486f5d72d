"""Entropy and mutual information without the bias of few tokens, with their intervals.

Counts of few tokens look more orderly than what they are drawn from: the plug-in entropy of N independent draws is too
small by (cells in use - 1) / 2N (Miller 1955), so mutual information is too large by (cells in use - rows in use -
columns in use + 1) / 2N (Panzeri and Treves 1996; cells that occur, not all that could). Tokens of a source are alike:
N of them tell less than N independent ones. The same expansion to second order, 1/2 sum of variance / share over the
cells, takes the variance of each cell as the sources show it, and is Miller's where tokens are independent.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moe_core.routing.statistics.jackknife import Groups
from moe_core.routing.trace.shares import entropy, mutual_information, ratio
from moe_core.routing.trace.types import Float64Array


class Estimate(NamedTuple):
    """A measure of L layers with its bias taken away, and the interval about it."""

    estimate: Float64Array
    """[L]"""
    low: Float64Array
    """[L]"""
    high: Float64Array
    """[L] 95 % interval; NaN where there are too few sources."""


def entropy_bias(counts_GC: npt.NDArray[np.number], groups: Groups) -> float:
    """By how many nats the plug-in entropy of the summed counts is too small: 1/2 sum over cells in use of V / p."""
    total_C = counts_GC.sum(axis=0).astype(np.float64)
    used = total_C > 0
    share_C = total_C[used] / max(total_C.sum(), 1.0)
    return float((groups.cell_variance(counts_GC[:, used]) / share_C).sum() / 2)


def corrected_information(counts_GXY: npt.NDArray[np.number], groups: Groups) -> tuple[float, float]:
    """(I(X; Y), H(Y)) in nats of the summed counts, their bias taken away; NaN where there are none."""
    total_XY = counts_GXY.sum(axis=0)
    of_x = entropy_bias(counts_GXY.sum(axis=2), groups)
    of_y = entropy_bias(counts_GXY.sum(axis=1), groups)
    of_both = entropy_bias(counts_GXY.reshape(groups.count, -1), groups)
    information = float(mutual_information(total_XY)) + of_x + of_y - of_both
    return information, float(entropy(total_XY.sum(axis=0))) + of_y


def nmi(counts_XY: npt.NDArray[np.number]) -> Float64Array:
    """I(X; Y) / H(Y) of joint counts [...,X,Y], plug-in, 0..1; NaN where Y takes a single value."""
    return ratio(mutual_information(counts_XY), entropy(counts_XY.sum(axis=-2)))


def nmi_estimate(counts_GXY: npt.NDArray[np.number], groups: Groups) -> tuple[float, float, float]:
    """(estimate, low, high) of I(X; Y) / H(Y), 0..1, from the counts of each group of sources.

    Both are corrected (see above), and the interval is the jackknife's about the estimate. NaN where Y takes a single
    value; low and high where there are too few sources.
    """
    _, X, Y = counts_GXY.shape
    value = nmi(counts_GXY.sum(axis=0))
    if np.isnan(value):
        return np.nan, np.nan, np.nan
    estimate = np.clip(ratio(*corrected_information(counts_GXY, groups)), 0.0, 1.0)
    left_out_G = nmi(groups.without_each(counts_GXY.reshape(groups.count, X * Y)).reshape(-1, X, Y))
    low, high = groups.interval(value[None], left_out_G[:, None], estimate[None])
    return float(estimate), float(low[0]), float(high[0])


def join_estimates(rows: list[tuple[float, float, float]]) -> Estimate:
    """One estimate of L layers from that of each."""
    return Estimate(*np.array(rows, dtype=np.float64).reshape(-1, 3).T)
